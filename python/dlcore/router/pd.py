"""The two-stage hand-over: a prefill node computes a prompt, a decode node fetches its KV.

The ticket makes an answer faster, never possible: without one the decode node computes the prompt
itself. So whatever goes wrong with a prefill node is no failure of the request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from dlcore.router.backend import Backend, Role
from dlcore.router.policies import Policy, RoutingRequest
from dlcore.router.pool import BackendPool
from dlcore.router.upstream import Answer, NodeError

logger = logging.getLogger("dlcore.router")

PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
PREFILL_ATTEMPTS = 2
FIELD = "kv_transfer_params"
# Fields of the client's request that the prefill node must not see.
NOT_FOR_PREFILL = ("stream", "stream_options", "resume_token_ids", "prompt_logprobs", "echo")

Open = Callable[..., AbstractAsyncContextManager[Answer]]


class PrefillStage:
    """Event-loop thread only. `open_answer` is Dispatcher._open."""

    def __init__(self, pool: BackendPool, policy: Policy, open_answer: Open) -> None:
        self._pool = pool
        self._policy = policy
        self._open = open_answer

    async def prepared(
        self,
        backend: Backend,
        path: str,
        body: dict[str, Any],
        model: str | None,
        route: RoutingRequest,
    ) -> dict[str, Any]:
        """`body` for `backend`: with a ticket where it is a decode node and a prefill node
        answers, as it is otherwise."""
        if backend.role is not Role.DECODE or path not in PATHS or FIELD in body:
            return body
        failed: list[str] = []
        for _ in range(PREFILL_ATTEMPTS):
            nodes = self._pool.candidates(model, exclude=failed, roles=(Role.PREFILL,))
            if not nodes:
                break
            node = self._policy.choose(nodes, route)
            try:
                ticket = await self._ticket(node, path, body, route)
            except NodeError as failure:
                logger.warning("no prefill by %s: %s", node.url, failure)
                failed.append(node.url)
                continue
            return body if ticket is None else {**body, FIELD: {"ticket": ticket}}
        return body

    async def _ticket(
        self, node: Backend, path: str, body: dict[str, Any], route: RoutingRequest
    ) -> str | None:
        """None where the answer needs no hand-over, or the request is one nodes refuse."""
        asked = {name: value for name, value in body.items() if name not in NOT_FOR_PREFILL}
        asked[FIELD] = {"do_remote_decode": True}
        async with self._open(node, route, "POST", path, json=asked) as answer:
            text = await answer.body()
            if answer.status != 200:
                return None
        try:
            ticket = (msgspec.json.decode(text).get(FIELD) or {}).get("ticket")
        except (msgspec.DecodeError, AttributeError) as wrong:
            raise NodeError(f"{node.url} sent no answer: {wrong}") from None
        return ticket if isinstance(ticket, str) else None

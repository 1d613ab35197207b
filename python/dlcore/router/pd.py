"""The two-stage hand-over: a prefill node computes a prompt, a decode node fetches its KV.

The prefill node names the KV as soon as it begins to compute, so the decode node fetches what is
done while the rest is computed. The ticket makes an answer faster, never possible: without one,
and where the prefill node dies, the decode node computes the prompt itself. So whatever goes wrong
with a prefill node is no failure of the request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import msgspec

from dlcore.router.backend import Backend, Role
from dlcore.router.policies import Policy, RoutingRequest
from dlcore.router.pool import LAST_RESORT, PROMPT_ALONE, WHOLE, BackendPool
from dlcore.router.sse import data_of
from dlcore.router.upstream import Answer, NodeError

logger = logging.getLogger("dlcore.router")

PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
PREFILL_ATTEMPTS = 2
FIELD = "kv_transfer_params"
# Fields of the client's request that the prefill node must not see.
NOT_FOR_PREFILL = ("stream_options", "resume_token_ids", "prompt_logprobs", "echo")

Open = Callable[..., AbstractAsyncContextManager[Answer]]
Ticket = asyncio.Future[str | None]


def answering_roles(path: str, body: dict[str, Any]) -> Sequence[Collection[Role]]:
    """Roles of the nodes to send a request to, best ones first."""
    limits = (body.get("max_completion_tokens"), body.get("max_tokens"))
    one_token = path in PATHS and 1 in limits
    return (PROMPT_ALONE, WHOLE) if one_token else (WHOLE, LAST_RESORT)


class PrefillStage:
    """Event-loop thread only. `open_answer` is Dispatcher._open."""

    def __init__(self, pool: BackendPool, policy: Policy, open_answer: Open) -> None:
        self._pool = pool
        self._policy = policy
        self._open = open_answer

    @asynccontextmanager
    async def prepared(
        self,
        backend: Backend,
        path: str,
        body: dict[str, Any],
        model: str | None,
        route: RoutingRequest,
    ) -> AsyncIterator[dict[str, Any]]:
        """`body` for `backend`: with a ticket where it is a decode node and a prefill node
        answers, as it is otherwise. A prefill that still runs at the end is given up."""
        if backend.role is not Role.DECODE or path not in PATHS or FIELD in body:
            yield body
            return
        failed: list[str] = []
        for _ in range(PREFILL_ATTEMPTS):
            nodes = self._pool.candidates(model, exclude=failed, roles=(Role.PREFILL,))
            if not nodes:
                break
            node = self._policy.choose(nodes, route)
            ticket: Ticket = asyncio.get_running_loop().create_future()
            prefill = asyncio.create_task(self._prefill(node, path, body, route, ticket))
            prefill.add_done_callback(partial(_ended, ticket))
            try:
                try:
                    granted = await ticket
                except NodeError as failure:
                    logger.warning("no prefill by %s: %s", node.url, failure)
                    failed.append(node.url)
                    continue
                yield body if granted is None else {**body, FIELD: {"ticket": granted}}
                return
            finally:
                prefill.cancel()
                await asyncio.wait({prefill})
        yield body

    async def _prefill(
        self, node: Backend, path: str, body: dict[str, Any], route: RoutingRequest, ticket: Ticket
    ) -> None:
        """Sets `ticket` and stays until the prompt is computed. Ends without one where the answer
        needs no hand-over, or the request is one nodes refuse."""
        asked = {name: value for name, value in body.items() if name not in NOT_FOR_PREFILL}
        asked.update({FIELD: {"do_remote_decode": True}, "stream": True})
        try:
            async with self._open(node, route, "POST", path, json=asked) as answer:
                async for event in answer.events():
                    found = _ticket_in(event, node) if answer.status == 200 else None
                    if found is not None and not ticket.done():
                        ticket.set_result(found)
        except NodeError as failure:
            if ticket.done():
                logger.warning("%s was lost before it had computed the prompt", failure)
            else:
                ticket.set_exception(failure)


def _ended(ticket: Ticket, prefill: asyncio.Task[None]) -> None:
    if not ticket.done():
        ticket.set_result(None)


def _ticket_in(event: bytes, node: Backend) -> str | None:
    """Raises NodeError for an event that says the node failed, or that makes no sense."""
    data = data_of(event)
    if data is None:
        return None
    try:
        decoded = msgspec.json.decode(data)
        ticket = (decoded.get(FIELD) or {}).get("ticket")
        if "error" in decoded:
            raise NodeError(f"{node.url}: {decoded['error']}", 500)
    except (msgspec.DecodeError, AttributeError) as wrong:
        raise NodeError(f"{node.url} sent no answer: {wrong}") from None
    return ticket if isinstance(ticket, str) else None

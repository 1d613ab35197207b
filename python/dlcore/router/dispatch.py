"""Sends one request to nodes by the policy, again and again while the budget lasts."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from dlcore.router.attempts import Attempts, NoBackendError
from dlcore.router.backend import Backend, Role
from dlcore.router.config import RouterConfig
from dlcore.router.metrics import RouterMetrics
from dlcore.router.pd import PrefillStage, answering_roles
from dlcore.router.policies import Policy, RoutingRequest
from dlcore.router.pool import LAST_RESORT, WHOLE, BackendPool
from dlcore.router.resume import ChoiceAbortedError, ResumableStream
from dlcore.router.resume_events import ResumableEvents
from dlcore.router.retry_budget import RetryBudget
from dlcore.router.upstream import Answer, NodeError, ask

Resumable = ResumableStream | ResumableEvents
# APIs whose streams consist of named events.
NAMED_EVENTS = frozenset({"/v1/messages", "/v1/responses"})


class Dispatcher:
    """Event-loop thread only; one for the life of the router."""

    def __init__(
        self,
        config: RouterConfig,
        pool: BackendPool,
        policy: Policy,
        session: aiohttp.ClientSession,
        metrics: RouterMetrics,
    ) -> None:
        self._config = config
        self._pool = pool
        self._policy = policy
        self._session = session
        self._metrics = metrics
        self._prefill = PrefillStage(pool, policy, self._open)
        self._budget = RetryBudget(
            per_request=config.retry_ratio, per_second=config.min_retries_per_s
        )
        self._timeout = aiohttp.ClientTimeout(
            total=config.request_timeout_s, sock_connect=config.connect_timeout_s
        )

    async def whole(
        self, path: str, body: dict[str, Any], model: str | None, route: RoutingRequest
    ) -> tuple[int, str, bytes]:
        """(status, content type, body) of the first node that answers in full."""
        attempts = self._attempts(model, route, answering_roles(path, body))
        while True:
            backend = await attempts.next()
            try:
                async with (
                    self._prefill.prepared(backend, path, body, model, route) as sent,
                    self._open(
                        backend, route, "POST", path, data=msgspec.json.encode(sent)
                    ) as answer,
                ):
                    content_type = answer.headers.get("content-type", "application/json")
                    return answer.status, content_type, await answer.body()
            except NodeError as failure:
                attempts.failed(backend, failure)

    async def stream(
        self, path: str, body: dict[str, Any], model: str | None, route: RoutingRequest
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yields (status, bytes) pieces of one answer, whichever nodes they come from.

        The first status holds for all. A node lost midway is a pause: another one goes on
        from the tokens the client has. Raises NoBackendError when that cannot be had.
        """
        stream: Resumable = (ResumableEvents if path in NAMED_EVENTS else ResumableStream)(body)
        request_id = str(body.get("request_id") or uuid.uuid4().hex)
        attempts = self._attempts(model, route, answering_roles(path, body))
        while True:
            backend = await attempts.next(resumable=stream.started)
            sent = stream.request(request_id) if backend.resumable else body
            had = stream.num_tokens
            try:
                async with (
                    self._prefill.prepared(backend, path, sent, model, route) as asked,
                    self._open(backend, route, "POST", path, json=asked) as answer,
                ):
                    async for piece in self._relay(answer, backend, stream):
                        yield answer.status, piece
                return
            except NodeError as failure:
                attempts.failed(backend, failure)
                if stream.num_tokens > had:
                    attempts.progressed()
                if stream.started:
                    self._metrics.failovers.inc()
                    if stream.complete:
                        yield 200, stream.end_mark
                        return
                    if not stream.resumable:
                        raise NoBackendError(f"lost midway, and not resumable: {failure}") from None

    async def _relay(
        self, answer: Answer, backend: Backend, stream: Resumable
    ) -> AsyncIterator[bytes]:
        if answer.status != 200:  # the client's own mistake: not a stream
            if stream.started:
                text = (await answer.body())[:300].decode(errors="replace")
                raise NodeError(f"{backend.url} refused to go on: {text}", answer.status)
            yield await answer.body()
            return
        ended = False
        async for event in answer.events():
            piece = self._piece(event, backend, stream)
            ended = ended or stream.ends(event)
            if piece:
                yield piece
        if not ended:
            raise NodeError(f"{backend.url} ended the stream early")

    def _piece(self, event: bytes, backend: Backend, stream: Resumable) -> bytes | None:
        data = stream.data_of(event)
        if data is None:
            return event + b"\n\n"
        if data.startswith(b'{"error"'):
            raise NodeError(f"{backend.url}: {data[:300].decode(errors='replace')}")
        if not backend.resumable:
            return stream.accept_foreign(data)
        try:
            return stream.accept(data)
        except ChoiceAbortedError as aborted:
            raise NodeError(f"{backend.url}: {aborted}", status=503) from None
        except (msgspec.DecodeError, AttributeError, TypeError, KeyError) as wrong:
            raise NodeError(f"{backend.url} sent an event that is no chunk: {wrong}") from None

    def _attempts(
        self,
        model: str | None,
        route: RoutingRequest,
        roles: Sequence[Collection[Role]] = (WHOLE, LAST_RESORT),
    ) -> Attempts:
        self._budget.request()
        return Attempts(self._config, self._pool, self._policy, self._budget, model, route, roles)

    @asynccontextmanager
    async def _open(
        self, backend: Backend, route: RoutingRequest, method: str, path: str, **content: Any
    ) -> AsyncIterator[Answer]:
        """An answer, with the node's load and health kept while it is open."""
        headers = {"content-type": "application/json"}
        if self._config.backend_api_key:
            headers["authorization"] = f"Bearer {self._config.backend_api_key}"
        backend.running += 1
        backend.load += route.size
        backend.total_requests += 1
        self._policy.sent(backend, route)
        self._metrics.attempts.labels(backend.url).inc()
        try:
            async with ask(
                self._session, backend, method, path,
                headers=headers, timeout=self._timeout, **content,
            ) as answer:  # fmt: skip
                yield answer
            self._pool.succeeded(backend)
        except NodeError as failure:
            self._metrics.failures.labels(backend.url).inc()
            if failure.is_node_fault:
                self._pool.failed(backend, str(failure))
            raise
        finally:
            backend.running -= 1
            backend.load -= route.size

"""The router's HTTP surface: OpenAI-compatible paths, passed on; and its own few."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from dlcore.control.ctrl_client import CtrlClient
from dlcore.router.attempts import NoBackendError
from dlcore.router.auth import KeyMiddleware
from dlcore.router.backend import Role
from dlcore.router.body import read_json
from dlcore.router.config import RouterConfig, check_url
from dlcore.router.discovery import CtrlDiscovery, Discovery, Join, Leave, StaticDiscovery
from dlcore.router.dispatch import Dispatcher
from dlcore.router.errors import error, error_event
from dlcore.router.health import HealthChecker
from dlcore.router.metrics import RouterMetrics
from dlcore.router.operator import OperatorPaths
from dlcore.router.policies import RoutingRequest, make_policy
from dlcore.router.pool import BackendPool
from dlcore.router.prompt import routing_request
from dlcore.serve.drain import Drain, DrainMiddleware

logger = logging.getLogger("dlcore.router")

# Paths whose requests carry a prompt; those that also stream tokens can be resumed.
RESUMABLE_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
PLAIN_PATHS = ("/v1/messages/count_tokens", "/tokenize", "/detokenize")


class Router:
    """The parts that live as long as the server does."""

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.policy = make_policy(config.policy)
        self.pool = BackendPool(
            failures_until_down=config.failures_until_down, forget=self.policy.forget
        )
        self.metrics = RouterMetrics(self.pool)
        self.session: aiohttp.ClientSession
        self.health: HealthChecker
        self.dispatcher: Dispatcher
        self._following: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self.dispatcher = Dispatcher(
            self.config, self.pool, self.policy, self.session, self.metrics
        )
        self.health = HealthChecker(
            self.pool,
            self.session,
            interval_s=self.config.check_interval_s,
            timeout_s=self.config.check_timeout_s,
            api_key=self.config.backend_api_key,
        )
        sources: list[Discovery] = [StaticDiscovery(self.config.backends)]
        if self.config.discovery == "ctrl":
            client = CtrlClient(self.session, self.config.ctrl_url, self.config.scope)
            interval = self.config.heartbeat_interval_s
            sources.append(CtrlDiscovery(client, heartbeat_interval_s=interval))
        self._following = [asyncio.create_task(self._follow(source)) for source in sources]

    async def _follow(self, source: Discovery) -> None:
        async for change in source.changes():
            match change:
                case Join(url, role):
                    logger.info("node %s joins (%s)", url, role.value)
                    self.join(url, role)
                case Leave(url):
                    logger.info("node %s is gone", url)
                    if self.pool.get(url) is not None:  # an operator may have been faster
                        self.leave(url)

    async def stop(self) -> None:
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        await self.health.close()
        await self.session.close()

    def join(self, url: str, role: Role) -> None:
        self.health.watch(self.pool.join(check_url(url), role))

    def leave(self, url: str) -> None:
        self.pool.leave(url)
        self.health.unwatch(url)

    # ---- requests

    async def answer(self, request: Request) -> Response:
        body = await self._body(request)
        if isinstance(body, Response):
            return body
        path = request.url.path
        route = routing_request(body, request.headers.get(self.config.session_header))
        if path not in RESUMABLE_PATHS or not body.get("stream"):
            return await self._whole(request, body, route)
        return await self._streamed(
            request, self.dispatcher.stream(path, body, _model(body), route)
        )

    async def _body(self, request: Request) -> dict[str, Any] | Response:
        body = await read_json(request, self.config.max_body_bytes)
        if isinstance(body, Response):
            return body
        model = _model(body)
        if model is not None and not self.pool.knows_model(model):
            return error(404, f"no node serves the model {model!r}", "model")
        return body

    async def _whole(
        self, request: Request, body: dict[str, Any], route: RoutingRequest
    ) -> Response:
        started = time.monotonic()
        path = request.url.path
        try:
            status, content_type, answer = await self.dispatcher.whole(
                path, body, _model(body), route
            )
        except NoBackendError as problem:
            status, content_type = 503, "application/json"
            answer = bytes(error(503, str(problem)).body)
        self._count(path, status, started)
        return Response(answer, status, media_type=content_type)

    async def _streamed(
        self, request: Request, pieces: AsyncGenerator[tuple[int, bytes], None]
    ) -> Response:
        started = time.monotonic()
        path = request.url.path
        try:
            status, first = await anext(pieces)
        except StopAsyncIteration:
            status, first = 502, bytes(error(502, "the node sent an empty answer").body)
        except NoBackendError as problem:
            self._count(path, 503, started)
            return error(503, str(problem))
        self._count(path, status, started)
        if status != 200:
            await pieces.aclose()
            return Response(first, status, media_type="application/json")
        return StreamingResponse(self._joined(path, first, pieces), media_type="text/event-stream")

    async def _joined(
        self, path: str, first: bytes, pieces: AsyncIterator[tuple[int, bytes]]
    ) -> AsyncIterator[bytes]:
        yield first
        try:
            async for _, piece in pieces:
                yield piece
        except NoBackendError as problem:
            # Headers are long gone: the stream itself must say that it is cut.
            self.metrics.broken_streams.inc()
            yield error_event(path, str(problem))

    def _count(self, path: str, status: int, started: float) -> None:
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.latency.labels(path).observe(time.monotonic() - started)


def _model(body: dict[str, Any]) -> str | None:
    model = body.get("model")
    return model if isinstance(model, str) else None


def make_app(config: RouterConfig, drain: Drain | None = None) -> Starlette:
    """`drain`: who counts the running requests, and refuses new ones while it drains."""
    router = Router(config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await router.start()
        yield
        await router.stop()

    post = ["POST"]
    routes = [
        *(Route(path, router.answer, methods=post) for path in (*RESUMABLE_PATHS, *PLAIN_PATHS)),
        *OperatorPaths(router).routes(),
    ]
    middleware = [Middleware(KeyMiddleware, keys=config.api_key)] if config.api_key else []
    middleware.append(Middleware(DrainMiddleware, drain=drain or Drain()))
    app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan)
    app.state.router = router
    return app

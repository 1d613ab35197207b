"""The router's HTTP surface: OpenAI-compatible paths, passed on; and its own few."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dlcore.control.ctrl_client import CtrlClient
from dlcore.router.auth import KeyMiddleware
from dlcore.router.backend import Role
from dlcore.router.config import RouterConfig, check_url
from dlcore.router.discovery import CtrlDiscovery, Discovery, Join, Leave, StaticDiscovery
from dlcore.router.dispatch import Dispatcher, NoBackendError
from dlcore.router.health import HealthChecker
from dlcore.router.metrics import RouterMetrics
from dlcore.router.policies import RoutingRequest, make_policy
from dlcore.router.pool import BackendPool
from dlcore.router.prompt import routing_request
from dlcore.serve.drain import Drain, DrainMiddleware

logger = logging.getLogger("dlcore.router")

# Paths whose requests carry a prompt; those that also stream tokens can be resumed.
RESUMABLE_PATHS = ("/v1/chat/completions", "/v1/completions")
PLAIN_PATHS = (
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
)


def error(status: int, message: str, param: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "service_unavailable"
    body = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": body}, status)


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

    async def resumable(self, request: Request) -> Response:
        body, problem = await self._json(request)
        if body is None:
            return problem
        route = routing_request(body, request.headers.get(self.config.session_header))
        if not body.get("stream"):
            return await self._whole(request, body, route)
        pieces = self.dispatcher.stream(request.url.path, body, _model(body), route)
        return await self._streamed(request, pieces)

    async def plain(self, request: Request) -> Response:
        body, problem = await self._json(request)
        if body is None:
            return problem
        route = routing_request(body, request.headers.get(self.config.session_header))
        if not body.get("stream"):
            return await self._whole(request, body, route)
        encoded = msgspec.json.encode(body)
        pieces = self.dispatcher.passthrough(request.url.path, encoded, _model(body), route)
        return await self._streamed(request, pieces)

    async def _json(self, request: Request) -> tuple[dict[str, Any] | None, Response]:
        """The decoded body, or the answer that says what is wrong with it."""
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > self.config.max_body_bytes:
                limit = self.config.max_body_bytes
                return None, error(413, f"the body is larger than {limit} bytes")
        try:
            body = msgspec.json.decode(bytes(raw))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            return None, error(400, f"the body is not valid JSON: {problem}")
        if not isinstance(body, dict):
            return None, error(400, "the body must be a JSON object")
        model = body.get("model")
        if isinstance(model, str) and not self.pool.knows_model(model):
            return None, error(404, f"no node serves the model {model!r}", "model")
        return body, Response()

    async def _whole(
        self, request: Request, body: dict[str, Any], route: RoutingRequest
    ) -> Response:
        started = time.monotonic()
        path = request.url.path
        try:
            status, content_type, answer = await self.dispatcher.whole(
                "POST", path, msgspec.json.encode(body), _model(body), route
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
        return StreamingResponse(_joined(first, pieces), media_type="text/event-stream")

    def _count(self, path: str, status: int, started: float) -> None:
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.latency.labels(path).observe(time.monotonic() - started)

    # ---- the router's own

    async def models(self, request: Request) -> Response:
        names = sorted({m for b in self.pool if b.accepts for m in b.models})
        data = [{"id": name, "object": "model", "owned_by": "dlcore"} for name in names]
        return JSONResponse({"object": "list", "data": data})

    async def alive(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        up = sum(b.accepts for b in self.pool)
        return JSONResponse({"backends_up": up}, 200 if up else 503)

    async def render_metrics(self, request: Request) -> Response:
        return Response(self.metrics.render(), media_type="text/plain; version=0.0.4")

    async def list_backends(self, request: Request) -> Response:
        rows = [
            {
                "url": b.url,
                "role": b.role.value,
                "state": b.state.value,
                "models": b.models,
                "running": b.running,
                "failures": b.total_failures,
                "last_error": b.last_error,
            }
            for b in self.pool
        ]
        return JSONResponse({"backends": rows})

    async def change_backends(self, request: Request) -> Response:
        """{"action": "join" | "drain" | "leave", "url": ..., "role": ...}"""
        body, problem = await self._json(request)
        if body is None:
            return problem
        try:
            url = check_url(str(body.get("url", "")))
            if body.get("action") == "join":
                self.join(url, Role(body.get("role", "hybrid")))
            elif body.get("action") == "drain":
                self.pool.drain(url)
            elif body.get("action") == "leave":
                self.leave(url)
            else:
                return error(400, "must be join, drain or leave", "action")
        except ValueError as wrong:
            return error(400, str(wrong), "url")
        except KeyError:
            return error(404, f"no such backend: {url}", "url")
        return await self.list_backends(request)


def _model(body: dict[str, Any]) -> str | None:
    model = body.get("model")
    return model if isinstance(model, str) else None


async def _joined(first: bytes, pieces: AsyncIterator[tuple[int, bytes]]) -> AsyncIterator[bytes]:
    yield first
    try:
        async for _, piece in pieces:
            yield piece
    except NoBackendError as problem:
        # Headers are long gone: the stream itself must say that it is cut.
        body = msgspec.json.encode(
            {"error": {"message": str(problem), "type": "service_unavailable", "code": 503}}
        )
        yield b"data: " + body + b"\n\n"


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
        *(Route(path, router.resumable, methods=post) for path in RESUMABLE_PATHS),
        *(Route(path, router.plain, methods=post) for path in PLAIN_PATHS),
        Route("/v1/models", router.models),
        Route("/health", router.alive),
        Route("/ready", router.ready),
        Route("/metrics", router.render_metrics),
        Route("/backends", router.list_backends),
        Route("/backends", router.change_backends, methods=post),
    ]
    middleware = [Middleware(KeyMiddleware, keys=config.api_key)] if config.api_key else []
    middleware.append(Middleware(DrainMiddleware, drain=drain or Drain()))
    app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan)
    app.state.router = router
    return app

"""The ASGI app: the layers every request passes on its way to a route."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dlcore.serve.access_log import AccessLog
from dlcore.serve.auth import ApiKeys, AuthMiddleware
from dlcore.serve.context import ServerContext
from dlcore.serve.drain import DrainMiddleware
from dlcore.serve.errors import ApiError, ErrorBoundary
from dlcore.serve.limits import LimitMiddleware
from dlcore.serve.routes import routes
from dlcore.serve.tracing import TraceMiddleware


def build_app(ctx: ServerContext) -> Starlette:
    """The ASGI app. Layers, from outside: log, trace, CORS, errors, key, drain, limits, route."""
    config = ctx.config
    table, runner = routes(ctx)
    layers = [
        Middleware(
            AccessLog,
            metrics=ctx.metrics,
            enabled=config.access_log,
            paths=frozenset(spec.path for spec in table),
        ),
        *_tracing(ctx),
        *_cors(config.allowed_origins),
        Middleware(ErrorBoundary),
        Middleware(AuthMiddleware, keys=ApiKeys(config.api_key)),
        Middleware(DrainMiddleware, drain=ctx.drain),
    ]
    if ctx.limits.enabled:
        layers.append(Middleware(LimitMiddleware, limits=ctx.limits))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        runner.resume()
        yield
        await runner.stop()
        if ctx.tracing is not None:
            ctx.tracing.close()

    return Starlette(
        routes=[spec.route() for spec in table],
        middleware=layers,
        exception_handlers={HTTPException: _http_exception},
        lifespan=lifespan,
    )


def _tracing(ctx: ServerContext) -> list[Middleware]:
    return [Middleware(TraceMiddleware, tracing=ctx.tracing)] if ctx.tracing is not None else []


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    ]


def _http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    path = request.url.path
    message = {
        404: f"no such route: {request.method} {path}",
        405: f"{request.method} is not allowed on {path}",
    }.get(exc.status_code, exc.detail)
    kind = "not_found_error" if exc.status_code == 404 else "invalid_request_error"
    error = ApiError(exc.status_code, message, kind=kind)
    return JSONResponse(error.body(path), exc.status_code, headers=exc.headers)

"""The routes, and the layers every request passes on its way to them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dlcore.serve.access_log import AccessLog
from dlcore.serve.anthropic import MessagesEndpoint
from dlcore.serve.auth import ApiKeys, AuthMiddleware
from dlcore.serve.chat import ChatEndpoint
from dlcore.serve.completions import CompletionEndpoint
from dlcore.serve.context import ServerContext
from dlcore.serve.drain import DrainMiddleware
from dlcore.serve.errors import ApiError, ErrorBoundary
from dlcore.serve.limits import LimitMiddleware, Limits
from dlcore.serve.models import ModelsEndpoint
from dlcore.serve.playground import PlaygroundEndpoint
from dlcore.serve.responses import ResponsesEndpoint
from dlcore.serve.system import SystemEndpoint
from dlcore.serve.tokenize import TokenizeEndpoint


def routes(ctx: ServerContext) -> list[Route]:
    chat, completions = ChatEndpoint(ctx), CompletionEndpoint(ctx)
    playground = PlaygroundEndpoint()
    responses, messages = ResponsesEndpoint(ctx), MessagesEndpoint(ctx)
    models, system, tokens = ModelsEndpoint(ctx), SystemEndpoint(ctx), TokenizeEndpoint(ctx)
    return [
        Route("/v1/chat/completions", chat.create, methods=["POST"]),
        Route("/v1/completions", completions.create, methods=["POST"]),
        Route("/v1/responses", responses.create, methods=["POST"]),
        Route("/v1/responses/{response_id}", responses.retrieve, methods=["GET"]),
        Route("/v1/responses/{response_id}", responses.delete, methods=["DELETE"]),
        Route("/v1/responses/{response_id}/cancel", responses.cancel, methods=["POST"]),
        Route("/v1/messages", messages.create, methods=["POST"]),
        Route("/v1/messages/count_tokens", messages.count_tokens, methods=["POST"]),
        Route("/tokenize", tokens.tokenize, methods=["POST"]),
        Route("/detokenize", tokens.detokenize, methods=["POST"]),
        Route("/v1/models", models.list, methods=["GET"]),
        Route("/v1/models/{model:path}", models.get, methods=["GET"]),
        Route("/health", system.health, methods=["GET"]),
        Route("/ready", system.ready, methods=["GET"]),
        Route("/metrics", system.metrics, methods=["GET"]),
        Route("/version", system.version, methods=["GET"]),
        Route("/", playground.index, methods=["GET"]),
        Route("/playground/{name}", playground.file, methods=["GET"]),
    ]


def build_app(ctx: ServerContext) -> Starlette:
    """The ASGI app. Layers, outermost first: log, errors, CORS, key, drain, limits, route."""
    config = ctx.config
    table = routes(ctx)
    limits = Limits(config.requests_per_minute, config.max_concurrent_requests)
    layers = [
        Middleware(
            AccessLog,
            metrics=ctx.metrics,
            enabled=config.access_log,
            paths=frozenset(route.path for route in table),
        ),
        Middleware(ErrorBoundary),
        *_cors(config.allowed_origins),
        Middleware(AuthMiddleware, keys=ApiKeys(config.api_key)),
        Middleware(DrainMiddleware, drain=ctx.drain),
    ]
    if limits.enabled:
        layers.append(Middleware(LimitMiddleware, limits=limits))
    return Starlette(
        routes=table, middleware=layers, exception_handlers={HTTPException: _http_exception}
    )


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

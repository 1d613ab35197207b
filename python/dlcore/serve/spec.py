"""One row of the API: what the router, the OpenAPI document and the docs are made from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """`request` and `response` are the bodies' types; `streams`: may answer with SSE."""

    method: str
    path: str
    handler: Handler
    summary: str
    request: Any = None
    response: Any = None
    media_type: str = "application/json"
    streams: bool = False
    upload: bool = False
    query: tuple[str, ...] = ()

    def route(self) -> Route:
        return Route(self.path, self.handler, methods=[self.method])

"""The playground: three static files, a strict content policy, no build step."""

from __future__ import annotations

from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
}
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class PlaygroundEndpoint:
    """Read once, when the server starts."""

    def __init__(self) -> None:
        folder = files(__package__)
        self._files = {name: (folder / name).read_bytes() for name in _TYPES}

    async def index(self, request: Request) -> Response:
        return self._response("index.html")

    async def file(self, request: Request) -> Response:
        return self._response(request.path_params["name"])

    def _response(self, name: str) -> Response:
        if name not in self._files:
            raise HTTPException(404)
        return Response(self._files[name], media_type=_TYPES[name], headers=_HEADERS)

"""What operators ask: liveness, readiness, metrics, version."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dlcore.serve.context import ServerContext
from dlcore.version import VERSION


class SystemEndpoint:
    def __init__(self, ctx: ServerContext) -> None:
        self._ctx = ctx

    async def health(self, request: Request) -> Response:
        """Liveness: 200 while the engine lives, draining or not; 503 means restart it."""
        if self._ctx.engine.is_healthy():
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "the engine stopped"}, status_code=503)

    async def ready(self, request: Request) -> Response:
        """Readiness: 200 where new requests should be sent."""
        if not self._ctx.engine.is_healthy():
            return JSONResponse({"status": "the engine stopped"}, status_code=503)
        if self._ctx.drain.draining:
            return JSONResponse({"status": "draining"}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        return Response(self._ctx.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": VERSION})

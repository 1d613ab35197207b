"""The router's own paths: what is there, how it fares, who joins and leaves."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dlcore.router.backend import Role
from dlcore.router.body import read_json
from dlcore.router.config import RouterConfig, check_url
from dlcore.router.errors import error
from dlcore.router.metrics import RouterMetrics
from dlcore.router.pool import BackendPool


class Parts(Protocol):
    """What these paths need of the router."""

    config: RouterConfig
    pool: BackendPool
    metrics: RouterMetrics

    def join(self, url: str, role: Role) -> None: ...
    def leave(self, url: str) -> None: ...


class OperatorPaths:
    def __init__(self, router: Parts) -> None:
        self._router = router

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.models),
            Route("/health", self.alive),
            Route("/ready", self.ready),
            Route("/metrics", self.render_metrics),
            Route("/backends", self.list_backends),
            Route("/backends", self.change_backends, methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        """What the nodes serve, as one of them would say it: a router may stand before this one."""
        up = [backend for backend in self._router.pool if backend.accepts]
        data = []
        for name in sorted({model for backend in up for model in backend.models}):
            resumable = all(b.resumable for b in up if b.serves(name))
            owner = "dlcore" if resumable else "other"
            data.append({"id": name, "object": "model", "owned_by": owner})
        return JSONResponse({"object": "list", "data": data})

    async def alive(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        up = sum(b.accepts for b in self._router.pool)
        return JSONResponse({"backends_up": up}, 200 if up else 503)

    async def render_metrics(self, request: Request) -> Response:
        return Response(self._router.metrics.render(), media_type="text/plain; version=0.0.4")

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
            for b in self._router.pool
        ]
        return JSONResponse({"backends": rows})

    async def change_backends(self, request: Request) -> Response:
        """{"action": "join" | "drain" | "leave", "url": ..., "role": ...}"""
        body = await read_json(request, self._router.config.max_body_bytes)
        if isinstance(body, Response):
            return body
        try:
            url = check_url(str(body.get("url", "")))
            if body.get("action") == "join":
                self._router.join(url, Role(body.get("role", "hybrid")))
            elif body.get("action") == "drain":
                self._router.pool.drain(url)
            elif body.get("action") == "leave":
                self._router.leave(url)
            else:
                return error(400, "must be join, drain or leave", "action")
        except ValueError as wrong:
            return error(400, str(wrong), "url")
        except KeyError:
            return error(404, f"no such backend: {url}", "url")
        return await self.list_backends(request)

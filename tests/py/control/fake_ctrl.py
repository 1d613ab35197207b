"""dlslime-ctrl's HTTP API over a dict, answer for answer what version 0.1.23 says."""

from __future__ import annotations

import threading
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

FIELDS = ("endpoint", "entity_id", "entity_type", "kind", "metadata")


class FakeCtrl:
    """`redis_up` and `forget` stand for the Redis behind it."""

    def __init__(self) -> None:
        self.redis_up = True
        self._entities: dict[tuple[str, str], dict[str, Any]] = {}
        routes = [
            Route("/register", self._register, methods=["POST"]),
            Route("/unregister", self._unregister, methods=["POST"]),
            Route("/list_entities", self._list, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        self._server.force_exit = self._server.should_exit = True
        self._thread.join(5)

    def stop_redis(self) -> None:
        self.redis_up = False
        self._entities.clear()

    def start_redis(self) -> None:
        self.redis_up = True

    async def _register(self, request: Request) -> Response:
        body = await request.json()
        name = f"{body['entity_type']}:{body['entity_id']}"
        self._entities[(body["scope"], name)] = body
        return self._answer(message=f"Entity {name} registered successfully")

    async def _unregister(self, request: Request) -> Response:
        body = await request.json()
        name = f"{body['entity_type']}:{body['entity_id']}"
        self._entities.pop((body["scope"], name), None)
        return self._answer(message=f"Entity {name} unregistered successfully")

    async def _list(self, request: Request) -> Response:
        scope = (await request.json())["scope"]
        found = [e for (of, _), e in self._entities.items() if of == scope]
        return self._answer(
            entities=[
                {**{f: e[f] for f in FIELDS}, "id": e["entity_id"], "resource": None} for e in found
            ]
        )

    def _answer(self, **content: Any) -> Response:
        if not self.redis_up:
            message = "Redis pool: Error occurred while creating a new object: Connection refused"
            return JSONResponse({"message": message, "status": "error"}, 500)
        return JSONResponse({"status": "ok", **content})

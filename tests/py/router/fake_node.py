"""A node whose answers are known and whose failures are ordered.

The token at a position is a hash of the prompt and the position, as with a seeded model, so any
node goes on exactly where another stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAMED_TOKENS = 6  # of every answer of /v1/responses


def token_at(prompt: str, position: int) -> int:
    digest = hashlib.blake2b(f"{prompt}\0{position}".encode(), digest_size=2).digest()
    return int.from_bytes(digest, "little")


def text_of(prompt: str, count: int) -> str:
    return "".join(f"{token_at(prompt, i)} " for i in range(count))


def named(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


class Ear:
    """What a client of `app` has heard of the answer to its latest request, one at a time.

    What a connection still holds when it breaks may be lost: a node whose death is to come after
    some events of its own waits until they were heard.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.num_events = 0
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            await send(message)
            self.num_events += message.get("body", b"").count(b"\n\n")

        self.num_events = 0
        await self._app(scope, receive, tell)


class FakeNode:
    """Set the fields below from the test's thread; they take effect at the next token."""

    def __init__(self, *, model: str = "m", owned_by: str = "dlcore", port: int = 0) -> None:
        self.model = model
        self.owned_by = owned_by
        self.die_after: int | None = None  # tokens until streams are cut
        self.heard: Callable[[], int] | None = None  # events the client has; see Ear
        self.freeze = False  # nothing answers any more, health included
        self.status = 200  # of generation requests
        self.delay_s = 0.0
        self.requests: list[dict[str, Any]] = []
        self.running = 0
        self._port = port

    # ---- life

    def start(self) -> FakeNode:
        config = uvicorn.Config(self._app(), port=self._port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.01)
        self._port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    def stop(self) -> None:
        self._server.force_exit = True
        self._server.should_exit = True
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    # ---- HTTP

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/responses", self._responses, methods=["POST"]),
            ]
        )

    async def _thaw(self) -> None:
        while self.freeze:
            await asyncio.sleep(0.02)

    async def _die_if_told(self, sent: int, position: int) -> None:
        """`sent` events are this stream's, `position` those of the whole answer."""
        if self.die_after is None or sent < self.die_after:
            return
        while self.heard is not None and self.heard() < position:
            await asyncio.sleep(0.01)
        raise RuntimeError("as told")

    async def _health(self, request: Request) -> Response:
        await self._thaw()
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": self.model, "owned_by": self.owned_by}]})

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        await self._thaw()
        if self.status != 200:
            return JSONResponse({"error": {"message": "as told"}}, self.status)
        if body.get("stream"):
            return StreamingResponse(self._stream(body), media_type="text/event-stream")
        if self.die_after is not None:
            raise RuntimeError("as told")
        text = text_of(body["prompt"], body["max_tokens"])
        return JSONResponse({"choices": [{"index": 0, "text": text}]})

    async def _responses(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        if self.status != 200:
            return JSONResponse({"error": {"message": "as told"}}, self.status)
        return StreamingResponse(self._named_events(body), media_type="text/event-stream")

    async def _named_events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        past = (body.get("resume_token_ids") or [[]])[0]
        yield named("response.created", response={"id": f"resp_{self._port}", "output": []})
        for sent, position in enumerate(range(len(past), NAMED_TOKENS)):
            await self._die_if_told(sent, position + 1)
            token = token_at(body["input"], position)
            yield named("response.output_text.delta", delta=f"{token} ", output_index=0)
            if body.get("return_token_ids"):
                reason = "length" if position == NAMED_TOKENS - 1 else None
                yield named("dlcore.token_ids", token_ids=[token], finish_reason=reason)
        yield named("response.completed", response={"id": f"resp_{self._port}", "output": []})

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self.running += 1
        try:
            past = (body.get("resume_token_ids") or [[]])[0] or []
            for sent, position in enumerate(range(len(past), body["max_tokens"])):
                await asyncio.sleep(self.delay_s)
                await self._thaw()
                await self._die_if_told(sent, position)
                yield self._event(body, position)
            yield "data: [DONE]\n\n"
        finally:
            self.running -= 1

    def _event(self, body: dict[str, Any], position: int) -> str:
        token = token_at(body["prompt"], position)
        last = position == body["max_tokens"] - 1
        choice: dict[str, Any] = {
            "index": 0,
            "text": f"{token} ",
            "finish_reason": "length" if last else None,
        }
        if body.get("return_token_ids"):
            choice["token_ids"] = [token]
        event = {"id": f"cmpl-{self._port}", "created": self._port, "choices": [choice]}
        return f"data: {json.dumps(event)}\n\n"

"""Server-sent events: an engine's outputs, through an encoder, onto the wire.

One write per output. The status line waits for the first output, so a request the
engine refuses gets its proper status; a client kept waiting longer sees comments.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dlcore.outputs import RequestOutput
from dlcore.serve.errors import ApiError, to_api_error
from dlcore.serve.generation import Generation, Outputs
from dlcore.serve.lifetime import Lifetime
from dlcore.serve.record import SCOPE_KEY, SEND_KEY

DONE = b"data: [DONE]\n\n"
_COMMENT = b": waiting\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class StreamEncoder(Protocol):
    """Writes one API's events. Every method returns bytes ready to send (may be empty)."""

    def on_start(self) -> bytes: ...
    def on_output(self, job: int, output: RequestOutput) -> bytes: ...
    def on_end(self) -> bytes: ...
    def on_error(self, error: ApiError) -> bytes: ...


class EventStream(Response):
    """The response of a streamed request."""

    def __init__(
        self,
        generation: Generation,
        encoder: StreamEncoder,
        *,
        timeout_s: float,
        max_bytes: int,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._generation = generation
        self._encoder = encoder
        self._timeout_s = timeout_s
        self._left = max_bytes
        self._opening = b""
        self._started = False
        self._quiet = True  # nothing sent since the last idle notice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        self._send_chunk = scope.get(SEND_KEY, send)
        self._opening = self._encoder.on_start()
        lifetime = Lifetime(
            receive, scope[SCOPE_KEY], self._generation.abort, self._timeout_s, self._show_life
        )
        async with lifetime:
            try:
                await self._stream(lifetime)
            except Exception as exc:
                if not self._started:
                    raise
                await self._send_data(self._encoder.on_error(to_api_error(exc)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream(self, lifetime: Lifetime) -> None:
        async with aclosing(self._generation.outputs()) as outputs:
            await self._pass_on(outputs, lifetime, only_first=True)
            # A task of its own: each output wakes this one coroutine, not one through the other
            # all the middleware that waits for it.
            await asyncio.create_task(self._pass_on(outputs, lifetime))
        if lifetime.gone:
            return
        if lifetime.expired:
            raise TimeoutError
        await self._write(self._encoder.on_end())

    async def _pass_on(
        self, outputs: Outputs, lifetime: Lifetime, *, only_first: bool = False
    ) -> None:
        async for job, output in outputs:
            data = self._encoder.on_output(job, output)
            if output.resumed:  # the encoder had to see it; the client has it
                continue
            if lifetime.gone:
                return
            if lifetime.expired:
                raise TimeoutError
            if data:
                await self._write(data)
            if only_first:
                return

    async def _write(self, data: bytes) -> None:
        if not self._started:
            await self._start()
        self._quiet = False
        self._left -= len(data)
        if self._left < 0:
            raise ApiError(413, "the stream grew beyond --max-stream-bytes", code="stream_too_big")
        await self._send_data(data)

    async def _send_data(self, data: bytes) -> None:
        await self._send_chunk({"type": "http.response.body", "body": data, "more_body": True})

    async def _start(self) -> None:
        self._started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        if self._opening:
            await self._send_data(self._opening)

    async def _show_life(self) -> None:
        if self._quiet:
            if not self._started:
                await self._start()
            await self._send_data(_COMMENT)
        self._quiet = True

"""Graceful shutdown: while draining, new requests get 503 and running ones finish."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from dlcore.serve.errors import send_error, unavailable

# Answered while draining: an operator watches the drain through these.
ALWAYS_ANSWERED = frozenset({"/health", "/ready", "/metrics"})


class Drain:
    """Counts requests in flight; `wait` returns once draining has emptied it."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.begun = asyncio.Event()
        self._idle = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self.begun.is_set()

    def begin(self) -> None:
        self.begun.set()
        self._check()

    def enter(self) -> None:
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1
        self._check()

    async def wait(self) -> None:
        await self._idle.wait()

    def _check(self) -> None:
        if self.draining and self.in_flight == 0:
            self._idle.set()


class DrainMiddleware:
    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS_ANSWERED:
            await self.app(scope, receive, send)
            return
        if self.drain.draining:
            error = unavailable("the server is shutting down")
            await send_error(send, error, scope["path"])
            return
        self.drain.enter()
        try:
            await self.app(scope, receive, send)
        finally:
            self.drain.leave()

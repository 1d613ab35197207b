"""Ends a request early: its client went away, or its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from starlette.types import Receive

from dlcore.serve.record import RequestRecord

IDLE_NOTICE_S = 15.0


class Lifetime:
    """While entered, watches the client and the clock; calls `abort` when either is over.

    `on_idle` is called about every 15 s, so that a waiting stream can show it lives.
    """

    def __init__(
        self,
        receive: Receive,
        record: RequestRecord,
        abort: Callable[[], Awaitable[None]],
        timeout_s: float,
        on_idle: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.expired = False
        self._receive = receive
        self._record = record
        self._abort = abort
        self._timeout_s = timeout_s or float("inf")
        self._on_idle = on_idle
        self._watcher: asyncio.Task[None] | None = None

    @property
    def gone(self) -> bool:
        return self._record.disconnected

    async def __aenter__(self) -> Lifetime:
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        watcher, self._watcher = self._watcher, None  # or its end and this would hold each other
        assert watcher is not None
        watcher.cancel()

    async def _watch(self) -> None:
        disconnect = asyncio.ensure_future(self._disconnected())
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            while not disconnect.done():
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    break
                await asyncio.wait({disconnect}, timeout=min(left, IDLE_NOTICE_S))
                if self._on_idle is not None and not disconnect.done():
                    await self._on_idle()
            self._record.disconnected = disconnect.done()
            self.expired = not disconnect.done()
            await self._abort()
        finally:
            disconnect.cancel()

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

"""Where one request's deltas wait for its consumer."""

from __future__ import annotations

import asyncio

from dlcore.outputs import RequestOutput
from dlcore.request_state import merge_output


class OutputQueue:
    """Holds at most one output: a consumer slower than the engine gets several deltas merged.

    Event loop only; one consumer.
    """

    __slots__ = ("_error", "_loop", "_pending", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: RequestOutput | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, output: RequestOutput | Exception) -> None:
        if isinstance(output, Exception):
            self._error = output
        elif self._pending is None:
            self._pending = output
        else:
            merge_output(self._pending, output)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def get(self) -> RequestOutput:
        """Raises what the engine failed with, after all output that came before it."""
        while True:
            pending = self._pending
            if pending is not None:
                self._pending = None
                return pending
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

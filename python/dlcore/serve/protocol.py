"""uvicorn's HTTP protocol, with the deadlines it lacks.

A client that never finishes its headers, sends endless ones, or never reads its
response is cut off; uvicorn alone would keep it for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024


def guarded_protocol(
    header_timeout_s: float, write_timeout_s: float, max_connections: int
) -> type[HttpToolsProtocol]:
    """A protocol class with these deadlines."""

    class GuardedProtocol(HttpToolsProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._header_timer: asyncio.TimerHandle | None = None
            self._write_timer: asyncio.TimerHandle | None = None
            self._header_bytes = 0
            self._in_headers = True

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.abort()
                return
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timers()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._in_headers:
                self._header_bytes += len(data)
                if self._header_timer is None:
                    self._await_headers()
            super().data_received(data)
            if self._in_headers and self._header_bytes > MAX_HEADER_BYTES:
                self.transport.abort()

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            if len(self.headers) > 256:
                self.transport.abort()

        def on_message_begin(self) -> None:
            self._in_headers = True
            self._header_bytes = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_headers = False
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
            super().on_headers_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_writes()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._in_headers = True
            self._header_bytes = 0
            if self.transport.get_write_buffer_size() > 0:
                self._watch_writes()

        def _await_headers(self) -> None:
            self._header_timer = self.loop.call_later(header_timeout_s, self.transport.abort)

        def _watch_writes(self) -> None:
            if self._write_timer is None:
                self._write_timer = self.loop.call_later(write_timeout_s, self._check_writes)

        def _check_writes(self) -> None:
            self._write_timer = None
            if self.transport.get_write_buffer_size() > 0:
                self.transport.abort()

        def _stop_timers(self) -> None:
            # uvicorn leaves its own running when the client resets the connection, and with it
            # the connection's memory for as long as a connection may be idle.
            for timer in (self._header_timer, self._write_timer, self.timeout_keep_alive_task):
                if timer is not None:
                    timer.cancel()

    return GuardedProtocol

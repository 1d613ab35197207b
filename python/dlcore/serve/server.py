"""uvicorn, ended the way operators expect: first signal drains, second aborts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from dlcore.serve.config import ServeConfig
from dlcore.serve.drain import Drain
from dlcore.serve.protocol import guarded_protocol

logger = logging.getLogger("dlcore.serve")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_WORDS_S = 5  # after the drain: for answers still on their way out


class DrainingServer(uvicorn.Server):
    """`exit_code` says how it ended: 0 drained, 128 + signal when aborted."""

    def __init__(self, config: uvicorn.Config, drain: Drain, drain_timeout_s: float) -> None:
        super().__init__(config)
        self.exit_code = 0
        self.on_ready: Callable[[], None] = lambda: None
        self._drain = drain
        self._drain_timeout_s = drain_timeout_s or None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves this out then; jobs must be put down all the same
            await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in _SIGNALS}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._on_signal, sig)

    def begin_drain(self) -> None:
        """Event-loop thread only. New requests get 503; exits once none is running."""
        if self._draining is None:
            logger.info("draining: %d requests are running", self._drain.in_flight)
            self._drain.begin()
            self._draining = asyncio.create_task(self._exit_when_drained())

    def _on_signal(self, sig: int) -> None:
        if self._draining is None:
            self.begin_drain()
        else:
            logger.warning("second signal: aborting %d requests", self._drain.in_flight)
            self._abort(128 + sig)

    async def _exit_when_drained(self) -> None:
        try:
            await asyncio.wait_for(self._drain.wait(), self._drain_timeout_s)
            self.should_exit = True
        except (asyncio.TimeoutError, TimeoutError):
            logger.warning("drain timed out: aborting %d requests", self._drain.in_flight)
            self._abort(0)

    def _abort(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.should_exit = self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def make_server(config: ServeConfig, app: ASGIApp, drain: Drain) -> DrainingServer:
    settings = uvicorn.Config(
        app,
        http=guarded_protocol(config.header_timeout, config.write_timeout, config.max_connections),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(config.keep_alive_timeout),
        timeout_graceful_shutdown=_LAST_WORDS_S,
        backlog=4096,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        ssl_keyfile_password=config.ssl_keyfile_password,
        ssl_ca_certs=config.ssl_ca_certs,
        ssl_cert_reqs=ssl.CERT_REQUIRED if config.ssl_ca_certs else ssl.CERT_NONE,
    )
    return DrainingServer(settings, drain, config.drain_timeout)

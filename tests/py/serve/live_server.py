"""A real server on a real port: in a thread beside the test, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvloop
from serve.fake_client import FakeEngine

from dlcore.serve.app import build_app
from dlcore.serve.config import ServeConfig
from dlcore.serve.context import ServerContext, make_context
from dlcore.serve.http import bind
from dlcore.serve.server import DrainingServer, make_server


class LiveServer:
    """Runs until the context ends; `call` runs a function on the server's event loop."""

    def __init__(self, engine: Any, config: ServeConfig) -> None:
        self.engine = engine
        self.config = config
        self.ctx: ServerContext
        self.server: DrainingServer
        self._listener = bind("127.0.0.1", 0)
        self.port = int(self._listener.getsockname()[1])
        self.base = f"http://127.0.0.1:{self.port}"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._loop: asyncio.AbstractEventLoop

    def _run(self) -> None:
        uvloop.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.ctx = make_context(self.engine, self.config)
        self.server = make_server(self.config, build_app(self.ctx), self.ctx.drain)
        self.server.on_ready = self._ready.set
        try:
            await self.server.serve(sockets=[self._listener])
        finally:
            await self.engine.close()

    def call(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` to its end on the server's event loop."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20), "the server did not start"

    def stop(self) -> None:
        def end() -> None:
            self.server.force_exit = self.server.should_exit = True
            for connection in list(self.server.server_state.connections):
                connection.transport.abort()

        if self._thread.is_alive():
            self.call(end)
            self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"

    def join(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def wait_idle(self, timeout: float = 10.0) -> bool:
        """True once the engine has no running request."""
        return wait_until(lambda: not self.engine.running, timeout)


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


@contextlib.contextmanager
def live_server(
    engine: Any | None = None, *, log_requests: bool = False, **settings: Any
) -> Iterator[LiveServer]:
    config = ServeConfig(access_log=log_requests, **settings)
    server = LiveServer(engine or FakeEngine(), config)
    server.start()
    try:
        yield server
    finally:
        server.stop()

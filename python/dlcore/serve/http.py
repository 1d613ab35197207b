"""Runs the HTTP server: bind, start the engine, say so, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

from dlcore.config import ConfigError
from dlcore.engine_client import EngineClient
from dlcore.serve.app import build_app
from dlcore.serve.auth import load_api_keys
from dlcore.serve.collector import rare_collections
from dlcore.serve.config import ServeConfig
from dlcore.serve.context import ServerContext, make_context
from dlcore.serve.limits import Limiter
from dlcore.serve.logs import configure_logging
from dlcore.serve.membership import membership
from dlcore.serve.response_homes import ResponseHomes
from dlcore.serve.server import make_server

try:
    import uvloop
except ImportError:  # not made for every platform
    uvloop = None  # type: ignore[assignment]

logger = logging.getLogger("dlcore.serve")

MakeEngine = Callable[[], Awaitable[EngineClient]]


def run_server(config: ServeConfig, make_engine: MakeEngine) -> int:
    """Serves until a signal ends it. The exit code: 0 after a drain, 1 if it cannot start.

    `make_engine` runs on the server's event loop, once the port is known to be free.
    """
    configure_logging(config.log_level, access_log=config.access_log)
    checked = checked_keys(config)
    listener = bind_or_explain(config) if checked is not None else None
    if checked is None or listener is None:
        return 1
    with contextlib.closing(listener):
        return run(serve(checked, make_engine, listener))


def checked_keys(config: ServeConfig) -> ServeConfig | None:
    """`config` with the key file's keys, or None after saying what is wrong with it."""
    try:
        keys = load_api_keys(config.api_key, config.api_key_file, None)
    except ValueError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return None
    return replace(config, api_key=keys)


def bind_or_explain(config: ServeConfig) -> socket.socket | None:
    try:
        return bind(config.host, config.port)
    except OSError as exc:
        sys.stderr.write(f"error: {_bind_error(config, exc)}\n")
        return None


def run(main: Coroutine[Any, Any, int]) -> int:
    """asyncio.run on the fastest event loop there is."""
    return asyncio.run(main) if uvloop is None else int(uvloop.run(main))


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A bound socket that does not listen yet; `shared` lets other front ends bind it too.

    Raises OSError.
    """
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


async def serve(
    config: ServeConfig,
    make_engine: MakeEngine,
    listener: socket.socket,
    *,
    homes: ResponseHomes | None = None,
    limits: Limiter | None = None,
    on_ready: Callable[[ServerContext], None] | None = None,
) -> int:
    """`homes` and `limits`: where this process is one of several in front of an engine."""
    began = time.monotonic()
    engine = await make_engine()
    loaded = time.monotonic()
    try:
        ctx = make_context(engine, config)
        ctx.homes = homes
        ctx.limits = limits or ctx.limits
        server = make_server(config, build_app(ctx), ctx.drain)
        rpc = await _start_rpc(ctx)

        def announce() -> None:
            now = time.monotonic()
            logger.info(
                "%s is ready at %s (engine %.1f s, server %.2f s)",
                ", ".join(ctx.model_names),
                _url(config, listener),
                loaded - began,
                now - loaded,
            )

        server.on_ready = announce if on_ready is None else partial(on_ready, ctx)
        with rare_collections():
            async with membership(config, _url(config, listener), server, ctx.drain):
                await server.serve(sockets=[listener, *([homes.listen()] if homes else [])])
        if rpc is not None:
            await rpc.stop()  # its calls have been drained with the others
        return server.exit_code
    except (OSError, ConfigError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    finally:
        await engine.close()


async def _start_rpc(ctx: ServerContext) -> Any:
    """The gRPC server where one is asked for. Raises OSError when it cannot listen."""
    if ctx.config.grpc_port is None:
        return None
    # Here, not above: a server without gRPC must start whatever version of grpcio is installed.
    rpc = await import_module("dlcore.serve.rpc.server").RpcServer.start(ctx)
    logger.info("gRPC is ready at %s:%d", ctx.config.host, rpc.port)
    return rpc


def _url(config: ServeConfig, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "https" if config.ssl_certfile else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _bind_error(config: ServeConfig, exc: OSError) -> str:
    where = f"{config.host}:{config.port}"
    if exc.errno == errno.EADDRINUSE:
        return f"port {config.port} is in use on {config.host}: stop its owner or pass --port"
    if isinstance(exc, socket.gaierror):
        return f"cannot resolve --host {config.host}: {exc.strerror}"
    return f"cannot listen on {where}: {exc.strerror}"

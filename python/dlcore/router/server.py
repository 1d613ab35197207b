"""Runs the router: bind, say so, serve, drain. The same server as `dlcore serve`."""

from __future__ import annotations

import contextlib
import logging
import socket
from dataclasses import replace

from dlcore.config import ConfigError
from dlcore.router.app import make_app
from dlcore.router.config import RouterConfig
from dlcore.serve.auth import keys_in_file
from dlcore.serve.collector import rare_collections
from dlcore.serve.config import ServeConfig
from dlcore.serve.drain import Drain
from dlcore.serve.http import bind_or_explain, checked_keys, run
from dlcore.serve.logs import configure_logging
from dlcore.serve.server import make_server

logger = logging.getLogger("dlcore.router")


def run_router(config: RouterConfig) -> int:
    """Serves until a signal ends it. The exit code: 0 after a drain, 1 if it cannot start.

    Raises ConfigError when `backend_api_key_file` holds no key.
    """
    config = replace(config, backend_api_key=key_for_nodes(config))
    configure_logging(config.log_level, access_log=False)
    checked = checked_keys(http_settings(config))
    listener = bind_or_explain(checked) if checked is not None else None
    if checked is None or listener is None:
        return 1
    with contextlib.closing(listener):
        return run(serve(replace(config, api_key=checked.api_key), checked, listener))


def key_for_nodes(config: RouterConfig) -> str | None:
    """Raises ConfigError."""
    if config.backend_api_key is not None or config.backend_api_key_file is None:
        return config.backend_api_key
    try:
        return keys_in_file(config.backend_api_key_file)[0]
    except ValueError as error:
        raise ConfigError("backend_api_key_file", str(error)) from None


def http_settings(config: RouterConfig) -> ServeConfig:
    """The part of the router's settings that its HTTP server understands."""
    return ServeConfig(
        host=config.host,
        port=config.port,
        api_key=config.api_key,
        api_key_file=config.api_key_file,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        max_connections=config.max_connections,
        drain_timeout=config.drain_timeout,
        log_level=config.log_level,
    )


async def serve(config: RouterConfig, http: ServeConfig, listener: socket.socket) -> int:
    drain = Drain()
    server = make_server(http, make_app(config, drain), drain)
    host, port = listener.getsockname()[:2]
    scheme = "https" if config.ssl_certfile else "http"
    server.on_ready = lambda: logger.info(
        "router is ready at %s://%s:%d, %d nodes listed", scheme, host, port, len(config.backends)
    )
    with rare_collections():
        await server.serve(sockets=[listener])
    return server.exit_code

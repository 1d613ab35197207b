"""Starts and stops the gRPC server: authentication, health, reflection, TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dlcore.serve.auth import ApiKeys
from dlcore.serve.config import ServeConfig
from dlcore.serve.context import ServerContext
from dlcore.serve.rpc.bridge import ThreadedEngine
from dlcore.serve.rpc.service import SERVICE, EngineService, key_name
from dlcore.v1.engine_pb2_grpc import add_EngineServicer_to_server

HEALTH_CHECK = "/grpc.health.v1.Health/"
MAX_CALLS = 1024  # a call holds a thread
STOP_TIMEOUT_S = 5.0


class ApiKeyInterceptor(grpc.ServerInterceptor):
    """Every call but the health check needs a key: the same keys, sent as over HTTP."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = continuation(details)
        if handler is None or details.method.startswith(HEALTH_CHECK):
            return handler
        if key_name(self._keys, details.invocation_metadata) is not None:
            return handler
        return _refusal_like(handler)


def _refuse(request: Any, context: Any) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong API key")


def _refusal_like(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """A handler of the same shape (unary or streaming) that answers UNAUTHENTICATED."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(_refuse, handler.request_deserializer, handler.response_serializer)


class RpcServer:
    """A running gRPC server; `port` is the one it got. Its calls are part of the server's drain."""

    def __init__(
        self, server: grpc.Server, pool: ThreadPoolExecutor, port: int, watch: asyncio.Task[None]
    ) -> None:
        self.port = port
        self._server = server
        self._pool = pool
        self._watch = watch

    @classmethod
    async def start(cls, ctx: ServerContext) -> RpcServer:
        """Raises OSError when it cannot listen or read the TLS files."""
        keys = ApiKeys(ctx.config.api_key)
        most = min(ctx.config.max_connections, MAX_CALLS)
        pool = ThreadPoolExecutor(most, thread_name_prefix="grpc")
        server = grpc.server(
            pool,
            interceptors=[ApiKeyInterceptor(keys)] if keys else [],
            options=[
                ("grpc.max_receive_message_length", ctx.config.max_body_bytes),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=most,
        )
        add_EngineServicer_to_server(ThreadedEngine(EngineService(ctx, keys)), server)
        servicer = _add_health(server)
        reflection.enable_server_reflection(
            [SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], server
        )
        port = _listen(server, ctx.config)
        server.start()
        return cls(server, pool, port, asyncio.create_task(_tell_of_drain(ctx, servicer)))

    async def stop(self) -> None:
        """Ends the calls that still run; the drain before it waited for those that may finish."""
        self._watch.cancel()
        await asyncio.to_thread(self._server.stop(0).wait, STOP_TIMEOUT_S)
        await asyncio.to_thread(self._pool.shutdown)


def _add_health(server: grpc.Server) -> Any:
    servicer = health.HealthServicer()
    for name in ("", SERVICE):
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


async def _tell_of_drain(ctx: ServerContext, servicer: Any) -> None:
    await ctx.drain.begun.wait()
    servicer.enter_graceful_shutdown()  # NOT_SERVING, as /ready's 503


def _listen(server: grpc.Server, config: ServeConfig) -> int:
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{config.grpc_port or 0}"
    credentials = _credentials(config)
    try:
        if credentials is not None:
            port = server.add_secure_port(address, credentials)
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    if port == 0:
        raise OSError(f"cannot listen on {address}: the port is in use")
    return int(port)


def _credentials(config: ServeConfig) -> grpc.ServerCredentials | None:
    if config.ssl_certfile is None or config.ssl_keyfile is None:
        return None
    pair = (Path(config.ssl_keyfile).read_bytes(), Path(config.ssl_certfile).read_bytes())
    if config.ssl_ca_certs is None:
        return grpc.ssl_server_credentials([pair])
    authorities = Path(config.ssl_ca_certs).read_bytes()
    return grpc.ssl_server_credentials([pair], authorities, require_client_auth=True)

"""Starts and stops the gRPC server: authentication, health, reflection, limits."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dlcore.engine_client import EngineClient
from dlcore.serve.rpc.service import EngineService
from dlcore.v1 import engine_pb2 as pb
from dlcore.v1.engine_pb2_grpc import add_EngineServicer_to_server

SERVICE = pb.DESCRIPTOR.services_by_name["Engine"].full_name
HEALTH_CHECK = "/grpc.health.v1.Health/"
FOREVER_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcConfig:
    """Where and how to listen. `api_keys` empty = no authentication."""

    host: str = "127.0.0.1"
    port: int = 0  # 0 = any free port
    api_keys: tuple[str, ...] = ()
    tls_certificate: bytes | None = None  # PEM chain; with tls_key
    tls_key: bytes | None = None
    max_message_bytes: int = 32 << 20
    max_concurrent_calls: int = 4096


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):
    """Every call but the health check needs `authorization: Bearer KEY`."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        self._keys = [f"Bearer {key}".encode() for key in api_keys]

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(details)
        if handler is None or details.method.startswith(HEALTH_CHECK):
            return handler
        if self._known(dict(details.invocation_metadata).get("authorization", "")):
            return handler
        return _refusal_like(handler)

    def _known(self, given: str | bytes) -> bool:
        value = given.encode() if isinstance(given, str) else given
        known = False
        for key in self._keys:  # all of them, so that the time taken tells nothing
            known |= hmac.compare_digest(value, key)
        return known


async def _refuse(request: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong API key")


async def _refuse_stream(requests: Any, context: Any) -> None:
    await _refuse(requests, context)


def _refusal_like(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """A handler of the same shape (unary or streaming) that answers UNAUTHENTICATED."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    behaviour = _refuse_stream if handler.request_streaming else _refuse
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


class RpcServer:
    """A running gRPC server; `port` is the one it got."""

    def __init__(self, server: grpc.aio.Server, service: EngineService, port: int) -> None:
        self._server = server
        self._service = service
        self.port = port

    @classmethod
    async def start(cls, engine: EngineClient, config: RpcConfig) -> RpcServer:
        """Raises OSError when the port is taken, ValueError when TLS is half configured."""
        server = grpc.aio.server(
            interceptors=[ApiKeyInterceptor(config.api_keys)] if config.api_keys else [],
            options=[
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=config.max_concurrent_calls,
        )
        service = EngineService(engine)
        add_EngineServicer_to_server(service, server)
        await _add_health(server)
        reflection.enable_server_reflection(
            [SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], server
        )
        port = _listen(server, config)
        await server.start()
        return cls(server, service, port)

    async def stop(self, grace_s: float | None) -> None:
        """Refuses new calls, lets running ones finish for up to `grace_s` seconds (None = all)."""
        self._service.drain()
        await self._server.stop(grace_s if grace_s is not None else float(FOREVER_S))


async def _add_health(server: grpc.aio.Server) -> None:
    servicer = health.aio.HealthServicer()
    for name in ("", SERVICE):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


def _listen(server: grpc.aio.Server, config: RpcConfig) -> int:
    address = f"{config.host}:{config.port}"
    if (config.tls_certificate is None) != (config.tls_key is None):
        raise ValueError("tls: give both the certificate and the key, or neither")
    try:
        if config.tls_certificate is not None and config.tls_key is not None:
            pair = (config.tls_key, config.tls_certificate)
            port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    if port == 0:
        raise OSError(f"cannot listen on {address}: the port is in use")
    return int(port)

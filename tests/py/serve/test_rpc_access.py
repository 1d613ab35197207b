"""Who may call dlcore.v1 and how often, what is counted, and what a port refuses."""

from __future__ import annotations

import asyncio
import re

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serve.counting_engine import CountingEngine, context_of, serving, until

from dlcore.client import AsyncClient
from dlcore.engine_client import QueueFullError
from dlcore.sampling_params import SamplingParams
from dlcore.serve.rpc.server import RpcServer


async def test_every_method_but_health_needs_the_key():
    async with serving(CountingEngine(), api_key=("k1", "k2")) as address:
        for key in (None, "wrong", "k"):
            async with AsyncClient(address, api_key=key) as client:
                for call in (client.generate("hi"), client.abort("a"), client.stats()):
                    with pytest.raises(PermissionError):
                        await call
        for key in ("k1", "k2"):
            async with AsyncClient(address, api_key=key) as client:
                assert (await client.generate("hi")).finished
        async with grpc.aio.insecure_channel(address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert (await check(health_pb2.HealthCheckRequest())).status == 1
            # Nothing is sent: grpc.aio calls a message that meets the refusal INTERNAL.
            info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                timeout=30
            )
            assert await info.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_keys_limits_count_its_calls_over_grpc_too():
    engine = CountingEngine(delay_s=0.01)
    ctx = context_of(engine, api_key=("one", "two"), max_concurrent_requests=1)
    server = await RpcServer.start(ctx)
    address = f"127.0.0.1:{server.port}"
    async with (
        AsyncClient(address, api_key="one") as one,
        AsyncClient(address, api_key="two") as two,
    ):
        running = asyncio.ensure_future(one.generate("hi", SamplingParams(max_tokens=10_000)))
        await until(lambda: engine.running == 1)
        with pytest.raises(QueueFullError, match="running already") as caught:
            await one.generate("hi")
        assert dict(caught.value.__cause__.trailing_metadata())["retry-after"] == "1"
        assert (await two.generate("hi")).finished
        running.cancel()
        await until(lambda: engine.running == 0)
        assert (await one.generate("hi")).finished
    await server.stop()


async def test_one_key_cannot_abort_anothers_request():
    engine = CountingEngine()
    async with serving(engine, api_key=("one", "two")) as address:
        for key in ("one", "two"):
            async with AsyncClient(address, api_key=key) as client:
                async for _ in client.stream("hi", request_id="same"):
                    pass
                await client.abort("same")
    ids = [request_id for *_, request_id, _, _ in engine.calls]
    assert len(set(ids)) == 2
    assert engine.aborted == ids


async def test_calls_are_counted_as_http_requests_are():
    engine = CountingEngine()
    ctx = context_of(engine)
    server = await RpcServer.start(ctx)
    async with AsyncClient(f"127.0.0.1:{server.port}") as client:
        await client.generate("hi", SamplingParams(max_tokens=5))
        engine.error = QueueFullError("full")
        with pytest.raises(QueueFullError):
            await client.generate("hi")
    await server.stop()
    page = ctx.metrics.render().decode()
    method = 'grpc_method="Generate",grpc_service="dlcore.v1.Engine"}'
    assert f'grpc_server_handled_total{{grpc_code="OK",{method} 1.0' in page
    assert f'grpc_server_handled_total{{grpc_code="RESOURCE_EXHAUSTED",{method} 1.0' in page
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
        assert re.search(rf"dlcore:{name}_count{{.*}} 1.0", page)
    assert re.search(r'dlcore:request_success_total{.*finished_reason="length".*} 1.0', page)


async def test_reflection_lists_the_engine_service():
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with serving(CountingEngine()) as address, grpc.aio.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for reply in stub.ServerReflectionInfo(iter([request])):
            names = [s.name for s in reply.list_services_response.service]
    assert "dlcore.v1.Engine" in names


async def test_a_taken_port_is_a_clear_error():
    async with serving(CountingEngine()) as address:
        port = int(address.rpartition(":")[2])
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            await RpcServer.start(context_of(CountingEngine(), grpc_port=port))


async def test_a_method_name_that_is_no_text_is_unimplemented():
    async with serving(CountingEngine()) as address:
        host, _, port = address.rpartition(":")
        for _ in range(3):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(call_of(b"/dlcore.v1.\xa6ngine/Generate"))
            await asyncio.wait_for(reader.read(1), 5)
            writer.close()
            async with AsyncClient(address) as client:
                assert (await client.model_info()).model == "counting"


def call_of(path: bytes) -> bytes:
    """A gRPC call in HTTP/2 frames, its headers as plain literals."""
    fields = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x"}
    fields |= {b"content-type": b"application/grpc", b"te": b"trailers"}
    block = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in fields.items()
    )

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
        return head + payload

    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    return preface + frame(1, 4, 1, block) + frame(0, 1, 1, bytes(5))

"""When a call to dlcore.v1 ends, and what its end frees."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serve.counting_engine import CountingEngine, context_of, serving, until

from dlcore.client import AsyncClient
from dlcore.engine_client import EngineDeadError
from dlcore.outputs import RequestOutput
from dlcore.sampling_params import SamplingParams
from dlcore.serve.rpc.server import RpcServer


async def test_closing_the_stream_aborts_the_request():
    engine = CountingEngine(delay_s=0.01)
    async with serving(engine) as address, AsyncClient(address) as client:
        stream = client.stream("hi", SamplingParams(max_tokens=10_000))
        await stream.__anext__()
        assert engine.running == 1
        await stream.aclose()
        await until(lambda: engine.running == 0)


async def test_a_passed_deadline_aborts_the_request():
    engine = CountingEngine(delay_s=0.01)
    async with serving(engine) as address, AsyncClient(address) as client:
        with pytest.raises(TimeoutError):
            await client.generate("hi", SamplingParams(max_tokens=10_000), timeout=0.2)
        await until(lambda: engine.running == 0)


async def test_a_request_that_takes_too_long_is_ended():
    engine = CountingEngine(delay_s=0.01)
    async with serving(engine, request_timeout=0.2) as address, AsyncClient(address) as client:
        with pytest.raises(TimeoutError, match="longer than allowed"):
            await client.generate("hi", SamplingParams(max_tokens=10_000))
        await until(lambda: engine.running == 0)


async def test_a_call_begins_when_its_turn_comes_and_not_at_all_once_cancelled():
    engine, turn = CountingEngine(), asyncio.Event()
    waiting = 0

    async def next_turn() -> None:
        nonlocal waiting
        waiting += 1
        await turn.wait()

    ctx = context_of(engine)
    ctx.turns = Mock(next=next_turn)
    server = await RpcServer.start(ctx)
    async with AsyncClient(f"127.0.0.1:{server.port}") as client:
        calls = [asyncio.ensure_future(client.generate("hi")) for _ in range(2)]
        await until(lambda: waiting == 2)
        assert engine.calls == []
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        await until(lambda: ctx.drain.in_flight == 1)
        turn.set()
        await calls[1]
        assert len(engine.calls) == 1
    await server.stop()


async def test_a_slow_reader_does_not_make_the_server_run_ahead():
    engine = CountingEngine()
    sent = 0
    original = engine._delta

    def counted(*args: object, **kwargs: object) -> RequestOutput:
        nonlocal sent
        sent += 1
        delta = original(*args, **kwargs)
        delta.outputs[0].text = "x" * 65536
        return delta

    engine._delta = counted
    async with serving(engine) as address, AsyncClient(address) as client:
        stream = client.stream("hi", SamplingParams(max_tokens=10_000))
        await stream.__anext__()
        await asyncio.sleep(0.5)  # reads nothing meanwhile
        assert sent < 2_000
        await stream.aclose()


async def test_a_draining_server_lets_running_calls_finish_and_refuses_new_ones():
    engine = CountingEngine(delay_s=0.01)
    ctx = context_of(engine)
    server = await RpcServer.start(ctx)
    async with AsyncClient(f"127.0.0.1:{server.port}") as client:
        running = asyncio.ensure_future(client.generate("hi", SamplingParams(max_tokens=30)))
        await until(lambda: engine.running == 1)
        ctx.drain.begin()
        with pytest.raises(EngineDeadError, match="shutting down"):
            await client.generate("hi")
        await client.abort("something")  # still answered
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            status = (await check(health_pb2.HealthCheckRequest())).status
        assert status == health_pb2.HealthCheckResponse.NOT_SERVING
        await asyncio.wait_for(ctx.drain.wait(), 10)
        assert len((await running).outputs[0].token_ids) == 30
    await server.stop()

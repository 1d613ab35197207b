"""dlcore.v1 over real sockets, against an engine whose answers are known."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dlcore.client import AsyncClient, Client
from dlcore.engine_client import EngineDeadError, QueueFullError
from dlcore.outputs import CompletionOutput, Logprob, RequestOutput
from dlcore.sampling_params import ParameterError, SamplingParams, StructuredOutputs
from dlcore.serve.config import ServeConfig
from dlcore.serve.context import ServerContext, make_context
from dlcore.serve.rpc.server import RpcServer
from tools.gen_proto import generate


class CountingEngine:
    """Answers 0, 1, 2, ... one token a yield; remembers what it was asked and what was closed."""

    model_name = "counting"
    max_model_len = 128
    vocab_size = 1000
    tokenizer = None

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.calls: list[tuple[str | Sequence[int], SamplingParams, str, int, str]] = []
        self.aborted: list[str] = []
        self.running = 0
        self.error: Exception | None = None
        self.defaults = SamplingParams()

    def default_sampling_params(self) -> SamplingParams:
        return self.defaults

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncIterator[RequestOutput]:
        if self.error is not None:
            raise self.error
        self.calls.append((prompt, params, request_id, priority, cache_salt))
        self.running += 1
        count = params.max_tokens or 10
        try:
            for token in range(count):
                await asyncio.sleep(self.delay_s)
                yield self._delta(request_id, token, last=token == count - 1)
        finally:
            self.running -= 1

    def _delta(self, request_id: str, token: int, *, last: bool) -> RequestOutput:
        completion = CompletionOutput(
            index=0,
            text=f"{token} ",
            token_ids=[token],
            logprobs=[{token: Logprob(-0.5, 1, f"{token} ")}],
            finish_reason="length" if last else None,
        )
        return RequestOutput(request_id, None, [7, 8], [completion], last, num_cached_tokens=1)

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def stats(self) -> dict[str, float]:
        return {"num_running": self.running}

    def is_healthy(self) -> bool:
        return True

    async def close(self) -> None:
        pass


def context_of(engine: CountingEngine, **config: object) -> ServerContext:
    config.setdefault("grpc_port", 0)
    return make_context(engine, ServeConfig(access_log=False, **config))


@asynccontextmanager
async def serving(engine: CountingEngine, **config: object) -> AsyncIterator[str]:
    server = await RpcServer.start(context_of(engine, **config))
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.stop()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 5 s")


async def test_stream_of_deltas_joins_to_the_whole_result():
    async with serving(CountingEngine()) as address, AsyncClient(address) as client:
        deltas = [d async for d in client.stream([7, 8], SamplingParams(max_tokens=5))]
        whole = await client.generate([7, 8], SamplingParams(max_tokens=5))
    assert [d.outputs[0].token_ids for d in deltas] == [[0], [1], [2], [3], [4]]
    assert "".join(d.outputs[0].text for d in deltas) == whole.outputs[0].text == "0 1 2 3 4 "
    assert whole.outputs[0].token_ids == [0, 1, 2, 3, 4]
    assert whole.outputs[0].finish_reason == "length"
    assert whole.outputs[0].logprobs[3] == {3: Logprob(-0.5, 1, "3 ")}
    assert whole.finished
    assert whole.num_cached_tokens == 1


async def test_every_sampling_parameter_arrives_as_it_was_sent():
    params = SamplingParams(
        n=2,
        temperature=0.25,
        top_p=0.5,
        top_k=7,
        min_p=0.125,
        seed=-3,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        max_tokens=1,
        min_tokens=1,
        stop=["a", "b"],
        stop_token_ids=(5, 6),
        include_stop_str_in_output=True,
        ignore_eos=True,
        logprobs=0,
        prompt_logprobs=2,
        logit_bias={3: -1.5},
        allowed_token_ids=(1, 2),
        bad_words=("x",),
        skip_special_tokens=False,
        detokenize=False,
        structured_outputs=StructuredOutputs(choice=("yes", "no")),
    )
    engine = CountingEngine()
    async with serving(engine) as address, AsyncClient(address) as client:
        async for _ in client.stream("hi", params, request_id="r1", priority=-2, cache_salt="s"):
            pass
    assert engine.calls == [("hi", params, "grpc--r1", -2, "s")]


async def test_unset_parameters_are_as_the_models_authors_advise():
    engine = CountingEngine()
    engine.defaults = SamplingParams(temperature=0.5, top_k=20)
    async with serving(engine) as address, AsyncClient(address) as client:
        await client.generate("hi")
        await client.generate("hi", SamplingParams(max_tokens=None))
    assert [params for _, params, *_ in engine.calls] == [
        SamplingParams(temperature=0.5, top_k=20, max_tokens=None),
        SamplingParams(max_tokens=None),
    ]


async def test_the_servers_cap_on_output_holds():
    engine = CountingEngine()
    async with serving(engine, max_output_tokens=5) as address, AsyncClient(address) as client:
        assert len((await client.generate("hi")).outputs[0].token_ids) == 5
        with pytest.raises(ParameterError, match="max_tokens: 6 is too large"):
            await client.generate("hi", SamplingParams(max_tokens=6))


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ParameterError("top_p", "must be in (0, 1]"), ParameterError),
        (QueueFullError("full"), QueueFullError),
        (EngineDeadError("dead"), EngineDeadError),
    ],
)
async def test_errors_keep_their_type_and_field(error, raised):
    engine = CountingEngine()
    engine.error = error
    async with serving(engine) as address, AsyncClient(address) as client:
        with pytest.raises(raised) as caught:
            await client.generate("hi")
    assert str(caught.value) == str(error)


async def test_a_request_without_prompt_names_the_field():
    async with serving(CountingEngine()) as address, grpc.aio.insecure_channel(address) as channel:
        from_wire = channel.unary_stream("/dlcore.v1.Engine/Generate")
        with pytest.raises(grpc.RpcError) as caught:
            async for _ in from_wire(b""):
                pass
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("prompt: ")


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


async def test_abort_stats_and_model_info():
    engine = CountingEngine()
    async with serving(engine) as address, AsyncClient(address) as client:
        await client.abort("a", "b")
        info = await client.model_info()
        stats = await client.stats()
    assert engine.aborted == ["grpc--a", "grpc--b"]
    assert (info.model, info.max_model_len, info.vocab_size) == ("counting", 128, 1000)
    assert not info.has_tokenizer
    assert stats == {"num_running": 0.0}


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
            info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            with pytest.raises(grpc.RpcError) as caught:
                async for _ in info(iter([reflection_pb2.ServerReflectionRequest()])):
                    pass
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_reflection_lists_the_engine_service():
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with serving(CountingEngine()) as address, grpc.aio.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for reply in stub.ServerReflectionInfo(iter([request])):
            names = [s.name for s in reply.list_services_response.service]
    assert "dlcore.v1.Engine" in names


async def test_the_blocking_client_gives_the_same_result():
    async with serving(CountingEngine()) as address:

        def use() -> tuple[RequestOutput, dict[str, float]]:
            with Client(address) as client:
                return client.generate("hi", SamplingParams(max_tokens=3)), client.stats()

        whole, stats = await asyncio.to_thread(use)
    assert whole.outputs[0].token_ids == [0, 1, 2]
    assert whole.prompt == "hi"
    assert "num_running" in stats


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


async def test_a_request_that_takes_too_long_is_ended():
    engine = CountingEngine(delay_s=0.01)
    async with serving(engine, request_timeout=0.2) as address, AsyncClient(address) as client:
        with pytest.raises(TimeoutError, match="longer than allowed"):
            await client.generate("hi", SamplingParams(max_tokens=10_000))
        await until(lambda: engine.running == 0)


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


def test_the_generated_modules_match_the_proto():
    committed = Path(__file__).resolve().parents[3] / "python" / "dlcore" / "v1"
    with tempfile.TemporaryDirectory() as folder:
        assert generate(Path(folder)) == 0
        for fresh in (Path(folder) / "dlcore" / "v1").iterdir():
            assert fresh.read_text() == (committed / fresh.name).read_text(), fresh.name

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import text_models
from fake_core import ERROR, FakeEngine, Row, make_session

from dlcore import async_llm
from dlcore.async_llm import AsyncLLM
from dlcore.engine_client import EngineClient, EngineDeadError
from dlcore.outputs import RequestOutput
from dlcore.request_state import merge_output
from dlcore.sampling_params import ParameterError, SamplingParams
from dlcore.tokenizer import Tokenizer

TOKENIZER = Tokenizer(text_models.byte_level(), eos_token_ids=(2,))
FOREVER = SamplingParams(max_tokens=None, seed=0)


def make_llm(engine: FakeEngine, *, max_model_len: int = 10_000) -> AsyncLLM:
    return AsyncLLM(session=make_session(engine, TOKENIZER, max_model_len=max_model_len))


async def collect(stream: AsyncIterator[RequestOutput]) -> RequestOutput:
    """All deltas of a stream as one output."""
    whole: RequestOutput | None = None
    async for delta in stream:
        if whole is None:
            whole = delta
        else:
            merge_output(whole, delta)
    assert whole is not None
    return whole


async def test_it_is_an_engine_client() -> None:
    client: EngineClient = make_llm(FakeEngine())
    assert (client.model_name, client.max_model_len, client.vocab_size) == ("fake", 10_000, 512)
    assert client.tokenizer is TOKENIZER
    assert client.is_healthy()
    await client.close()
    assert not client.is_healthy()


async def test_deltas_add_up_and_only_the_last_is_finished() -> None:
    llm = make_llm(FakeEngine())
    deltas = [d async for d in llm.generate([1, 2], SamplingParams(max_tokens=9, seed=3), "a")]
    tokens = [t for d in deltas for t in d.outputs[0].token_ids]
    assert tokens == [(2 + 3 + i) % 256 + 3 for i in range(9)]
    assert "".join(d.outputs[0].text for d in deltas) == TOKENIZER.decode(tokens)
    assert [d.finished for d in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].outputs[0].finish_reason == "length"


async def test_many_requests_run_at_once_and_never_mix() -> None:
    llm = make_llm(FakeEngine())
    params = SamplingParams(max_tokens=20, seed=0)
    outputs = await asyncio.gather(*(collect(llm.generate([i], params, str(i))) for i in range(50)))
    for i, output in enumerate(outputs):
        assert output.outputs[0].token_ids == [(i + k) % 256 + 3 for k in range(20)]
    assert llm.num_unfinished_requests == 0


async def test_a_slow_consumer_gets_merged_deltas_and_loses_nothing() -> None:
    llm = make_llm(FakeEngine())
    stream = llm.generate([1], SamplingParams(max_tokens=200, seed=0), "slow")
    first = await anext(stream)
    await asyncio.sleep(0.05)  # the engine finishes meanwhile
    rest = [delta async for delta in stream]
    assert len(rest) == 1
    assert len(first.outputs[0].token_ids) + len(rest[0].outputs[0].token_ids) == 200


async def test_closing_the_stream_aborts_the_request() -> None:
    engine = FakeEngine()
    llm = make_llm(engine)
    async with aclosing(llm.generate([1] * 9, SamplingParams(n=3, max_tokens=None), "a")) as stream:
        await anext(stream)
    assert sorted(engine.aborted) == [1, 2, 3]
    assert not engine.running
    assert llm.num_unfinished_requests == 0


async def test_cancelling_the_task_aborts_the_request() -> None:
    engine = FakeEngine()
    llm = make_llm(engine)
    task = asyncio.create_task(collect(llm.generate([1], FOREVER, "a")))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.aborted == [1]
    assert not engine.running


async def test_abort_by_id_ends_the_stream_with_abort() -> None:
    engine = FakeEngine()
    llm = make_llm(engine)
    task = asyncio.create_task(collect(llm.generate([1], FOREVER, "a")))
    await asyncio.sleep(0.01)
    await llm.abort("unknown")
    await llm.abort("a")
    output = await task
    assert output.finished
    assert output.outputs[0].finish_reason == "abort"
    assert engine.aborted == [1]


async def test_a_request_id_in_use_is_refused_and_free_again_after() -> None:
    llm = make_llm(FakeEngine())
    stream = llm.generate([1], FOREVER, "a")
    await anext(stream)
    with pytest.raises(ParameterError, match="already running"):
        await anext(llm.generate([1], FOREVER, "a"))
    await stream.aclose()
    await collect(llm.generate([1], SamplingParams(max_tokens=1), "a"))


async def test_a_prompt_beyond_max_model_len_is_refused_without_touching_the_core() -> None:
    engine = FakeEngine()
    llm = make_llm(engine, max_model_len=32)
    for prompt in ([1] * 32, "cat " * 40, "a" * 10_000_000):
        with pytest.raises(ParameterError) as caught:
            await anext(llm.generate(prompt, FOREVER, "a"))
        assert caught.value.param == "prompt"
    assert not engine.submitted


async def test_salt_and_priority_reach_the_core() -> None:
    engine = FakeEngine()
    params = SamplingParams(max_tokens=1)
    await collect(make_llm(engine).generate([1], params, "a", priority=-2, cache_salt="é"))
    assert (engine.submitted[0].priority, engine.submitted[0].cache_salt) == (-2, "é".encode())


async def test_siblings_follow_the_first_output_of_a_long_prompt() -> None:
    engine = FakeEngine()
    llm = make_llm(engine)
    stream = llm.generate([1] * 9, SamplingParams(n=4, max_tokens=5, seed=1), "a")
    output = await collect(stream)
    assert sorted(c.index for c in output.outputs) == [0, 1, 2, 3]
    assert all(len(c.token_ids) == 5 for c in output.outputs)
    assert [r.params.prompt_logprobs for r in engine.submitted] == [-1] * 4
    assert engine.steps == 6  # the first alone for one step, then all together


async def test_engine_death_reaches_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(stalled=True)
    llm = make_llm(engine)
    tasks = [asyncio.create_task(collect(llm.generate([1], FOREVER, str(i)))) for i in range(3)]
    await asyncio.sleep(0.01)
    engine.healthy = False
    engine.emit(Row(1, [], finish=ERROR, error="device lost"))
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert [type(r) for r in results] == [EngineDeadError] * 3
    assert "device lost" in str(results[0])
    with pytest.raises(EngineDeadError):
        await anext(llm.generate([1], FOREVER, "later"))
    assert not llm.is_healthy()


async def test_an_engine_that_dies_silently_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_llm, "HEALTH_CHECK_INTERVAL_S", 0.01)
    engine = FakeEngine(stalled=True)
    task = asyncio.create_task(collect(make_llm(engine).generate([1], FOREVER, "a")))
    await asyncio.sleep(0.03)
    engine.healthy = False
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(task, 5)


async def test_close_lets_requests_finish_in_time_and_aborts_the_rest() -> None:
    engine = FakeEngine()
    llm = make_llm(engine, max_model_len=10**9)
    short = asyncio.create_task(
        collect(llm.generate([1], SamplingParams(max_tokens=50, seed=0), "short"))
    )
    endless = asyncio.create_task(collect(llm.generate([1], FOREVER, "endless")))
    await asyncio.sleep(0.01)
    await llm.close(drain_timeout_s=0.2)
    assert (await short).outputs[0].finish_reason == "length"
    assert (await endless).outputs[0].finish_reason == "abort"
    assert engine.stopped
    with pytest.raises(EngineDeadError, match="closed"):
        await anext(llm.generate([1], FOREVER, "later"))

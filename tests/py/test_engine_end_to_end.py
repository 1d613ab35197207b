"""LLM and AsyncLLM over the real core: the null device for plumbing, the bundled model for text."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import torch

from dlcore import LLM, AsyncLLM, ConfigError, SamplingParams
from dlcore.engine_client import EngineDeadError, QueueFullError
from dlcore.outputs import RequestOutput

QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]
GREEDY = SamplingParams(temperature=0.0, max_tokens=48)
LONG_PROMPT = {"prompt_token_ids": list(range(3, 103))}


def comes_true(condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    """The core's counters follow its own thread."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def modules_alive() -> weakref.WeakSet[torch.nn.Module]:
    return weakref.WeakSet(x for x in gc.get_objects() if issubclass(type(x), torch.nn.Module))


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_num_batched_tokens=64, num_kv_blocks=512) as found:
        yield found


@pytest.fixture(scope="module")
def null_llm() -> Iterator[LLM]:
    with LLM(load_format="null") as found:
        yield found


def test_the_bundled_model_answers_in_text(llm: LLM) -> None:
    output = llm.chat(QUESTION, GREEDY)[0]
    completion = output.outputs[0]
    assert "7" in completion.text
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
    assert llm.tokenizer is not None
    assert completion.text == llm.tokenizer.decode(completion.token_ids)


def test_a_batch_gives_each_prompt_what_it_gets_alone(llm: LLM) -> None:
    prompts = [{"prompt_token_ids": [3 + i, 50, 60]} for i in range(5)]
    params = [SamplingParams(temperature=0.8, seed=i, max_tokens=5 + i) for i in range(5)]
    together = llm.generate(prompts, params)
    for prompt, one, output in zip(prompts, params, together, strict=True):
        alone = llm.generate(prompt, one)[0]
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids


def test_n_completions_are_those_of_the_seeds_in_a_row_and_reuse_the_prompt(llm: LLM) -> None:
    params = SamplingParams(n=4, temperature=1.0, seed=11, max_tokens=8, ignore_eos=True)
    before = llm.stats()["num_prefix_hits"]
    several = llm.generate(LONG_PROMPT, params)[0].outputs
    hits = llm.stats()["num_prefix_hits"] - before
    seeds = [SamplingParams(seed=11 + i, max_tokens=8, ignore_eos=True) for i in range(4)]
    alone = llm.generate([LONG_PROMPT] * 4, seeds)
    assert [c.token_ids for c in several] == [o.outputs[0].token_ids for o in alone]
    assert len({tuple(c.token_ids) for c in several}) > 1
    assert hits >= 3 * 96  # the full blocks of the prompt, for each that followed the first


def test_logprobs_come_for_every_token_and_prompt_position(llm: LLM) -> None:
    params = SamplingParams(
        temperature=0.0, max_tokens=4, logprobs=3, prompt_logprobs=2, ignore_eos=True
    )
    output = llm.generate(LONG_PROMPT, params)[0]
    completion = output.outputs[0]
    assert completion.logprobs is not None
    for token_id, position in zip(completion.token_ids, completion.logprobs, strict=True):
        assert position[token_id].rank == 1
        assert len(position) == 3
    assert completion.cumulative_logprob == pytest.approx(
        sum(p[t].logprob for t, p in zip(completion.token_ids, completion.logprobs, strict=True))
    )
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == 100
    for token_id, scored in zip(range(4, 103), output.prompt_logprobs[1:], strict=True):
        assert scored is not None
        assert scored[token_id].logprob <= 0.0


def test_a_stop_string_ends_the_sequence_in_the_core_too(llm: LLM) -> None:
    full = llm.chat(QUESTION, GREEDY)[0].outputs[0].text
    stopped = llm.chat(QUESTION, SamplingParams(temperature=0.0, max_tokens=48, stop="= "))[0]
    assert stopped.outputs[0].text == full[: full.index("= ")]
    assert comes_true(lambda: llm.stats()["num_running"] == 0)


def test_the_null_model_streams_like_a_real_one(null_llm: LLM) -> None:
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    outputs = null_llm.generate([LONG_PROMPT] * 30, params)
    tokenizer = null_llm.tokenizer
    assert tokenizer is not None
    for output in outputs:
        completion = output.outputs[0]
        assert len(completion.token_ids) == 40
        assert completion.text == tokenizer.decode(completion.token_ids)


def test_a_closed_engine_gives_back_its_model_while_one_still_holds_the_llm() -> None:
    others = modules_alive()
    with LLM(max_num_batched_tokens=64, num_kv_blocks=64) as closed:
        own = modules_alive() - others
        assert own
    assert not own
    assert closed.stats()["num_running"] == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"model": "/no/such/folder"}, "model"),
        ({"dtype": "int8"}, "dtype"),
        ({"max_model_len": 10**6}, "max_model_len"),
        ({"max_modellen": 10}, "max_modellen"),
        ({"block_size": 0}, "block_size"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LLM(**options)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.fixture
async def async_llm() -> AsyncIterator[AsyncLLM]:
    engine = AsyncLLM(load_format="null", max_waiting_requests=64, max_num_seqs=8)
    yield engine
    await engine.close()


async def collect(stream: AsyncIterator[RequestOutput]) -> list[int]:
    return [token async for delta in stream for token in delta.outputs[0].token_ids]


async def test_concurrent_streams_each_get_all_their_tokens(async_llm: AsyncLLM) -> None:
    streams = [
        async_llm.generate([5 + i, 6], SamplingParams(max_tokens=50 + i, ignore_eos=True), str(i))
        for i in range(40)
    ]
    counts = [len(tokens) for tokens in await asyncio.gather(*map(collect, streams))]
    assert counts == [50 + i for i in range(40)]
    assert async_llm.num_unfinished_requests == 0


async def test_a_full_queue_is_said_and_passes(async_llm: AsyncLLM) -> None:
    params = SamplingParams(max_tokens=1000, ignore_eos=True)
    tasks = [
        asyncio.create_task(collect(async_llm.generate([5], params, str(i)))) for i in range(400)
    ]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [r for r in results if isinstance(r, QueueFullError)]
    served = [r for r in results if isinstance(r, list)]
    assert refused
    assert len(refused) + len(served) == 400
    assert all(len(tokens) == 1000 for tokens in served)
    assert len(await collect(async_llm.generate([5], SamplingParams(max_tokens=3), "x"))) <= 3


async def test_aborted_requests_leave_nothing_behind(async_llm: AsyncLLM) -> None:
    params = SamplingParams(max_tokens=None, ignore_eos=True)
    tasks = [
        asyncio.create_task(collect(async_llm.generate([5 + i], params, str(i)))) for i in range(8)
    ]
    await asyncio.sleep(0.002)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for _ in range(200):
        stats = async_llm.stats()
        if stats["num_running"] == stats["num_waiting"] == stats["num_referenced_blocks"] == 0:
            break
        await asyncio.sleep(0.01)
    assert (stats["num_running"], stats["num_referenced_blocks"]) == (0, 0)


async def test_after_close_the_engine_says_so(async_llm: AsyncLLM) -> None:
    await async_llm.close()
    with pytest.raises(EngineDeadError):
        await collect(async_llm.generate([5], SamplingParams(), "a"))

"""Random clients against the real core without a model: nothing is lost, mixed up or left over."""

from __future__ import annotations

import asyncio
import random

import pytest

from dlcore import AsyncLLM, SamplingParams
from dlcore.outputs import RequestOutput
from dlcore.request_state import merge_output

NUM_REQUESTS = 400


def random_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        n=rng.choice([1, 1, 1, 2, 4]),
        max_tokens=rng.randint(1, 60),
        ignore_eos=True,
        stop=rng.choice([(), (), ("e",), ("the", "a ")]),
        logprobs=rng.choice([None, None, 2]),
        seed=rng.randrange(1000),
    )


async def one_client(llm: AsyncLLM, rng: random.Random, name: str) -> str:
    """Sends a request, then reads it to the end, leaves early, or asks for an abort."""
    params = random_params(rng)
    prompt = [rng.randrange(3, 200) for _ in range(rng.choice([1, 5, 40, 130]))]
    ending = rng.choice(["read", "read", "leave", "abort"])
    whole: RequestOutput | None = None
    stream = llm.generate(prompt, params, name, priority=rng.randrange(3))
    async for delta in stream:
        assert delta.request_id == name
        assert delta.prompt_token_ids == prompt
        if whole is None:
            whole = delta
        else:
            merge_output(whole, delta)
        if ending == "leave":
            await stream.aclose()
            return ending
        if ending == "abort":
            await llm.abort(name)
    assert whole is not None
    assert whole.finished
    check(whole, params, ending)
    return ending


def check(output: RequestOutput, params: SamplingParams, ending: str) -> None:
    assert sorted(c.index for c in output.outputs) == list(range(params.n))
    for completion in output.outputs:
        count = len(completion.token_ids)
        if completion.finish_reason == "length":
            assert count == params.max_tokens
        elif completion.finish_reason == "stop":
            assert completion.stop_reason in params.stop
        else:
            assert (completion.finish_reason, ending) == ("abort", "abort")
        if params.logprobs is not None and count:
            assert completion.logprobs is not None
            assert [next(iter(p)) for p in completion.logprobs] == completion.token_ids


@pytest.mark.parametrize("seed", range(3))
async def test_random_clients_leave_an_empty_engine(seed: int) -> None:
    rng = random.Random(seed)
    llm = AsyncLLM(
        load_format="null", max_num_seqs=16, num_kv_blocks=256, max_num_batched_tokens=64
    )
    limit = asyncio.Semaphore(60)

    async def client(i: int) -> str:
        async with limit:
            await asyncio.sleep(rng.random() * 0.002)
            return await one_client(llm, rng, str(i))

    try:
        endings = await asyncio.wait_for(
            asyncio.gather(*(client(i) for i in range(NUM_REQUESTS))), timeout=60
        )
        assert len(endings) == NUM_REQUESTS
        assert llm.num_unfinished_requests == 0
        await comes_to_rest(llm)
    finally:
        await llm.close()


async def comes_to_rest(llm: AsyncLLM) -> None:
    for _ in range(500):
        stats = llm.stats()
        if stats["num_running"] == stats["num_waiting"] == stats["num_referenced_blocks"] == 0:
            break
        await asyncio.sleep(0.01)
    assert (stats["num_running"], stats["num_waiting"]) == (0, 0)
    assert stats["num_referenced_blocks"] == 0
    assert stats["num_free_blocks"] + stats["num_cached_blocks"] == stats["num_kv_blocks"]

"""A tiny Qwen3 through the real engine, float32 on the CPU, against transformers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from tiny_checkpoints import GoldenPrompt, TinyCheckpoint, tiny_checkpoint

from dlcore.llm import LLM
from dlcore.outputs import RequestOutput
from dlcore.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
SMALL = {"device": "cpu", "dtype": "float32", "max_model_len": 512, "num_kv_blocks": 256}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[("qwen3", 0), ("qwen3", 1), ("qwen3_tied", 0)], ids=str)
def checkpoint(request: pytest.FixtureRequest) -> TinyCheckpoint:
    return tiny_checkpoint(*request.param)


def run(
    llm: LLM, prompts: Sequence[GoldenPrompt], params: SamplingParams = GREEDY
) -> list[RequestOutput]:
    ids = [{"prompt_token_ids": p.prompt_ids} for p in prompts]
    return llm.generate(ids, params, use_tqdm=False)


def assert_golden(prompts: Sequence[GoldenPrompt], outputs: Sequence[RequestOutput]) -> None:
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.outputs[0].token_ids == prompt.completion_ids, prompt.name


def test_greedy_tokens_equal_the_goldens(checkpoint: TinyCheckpoint) -> None:
    with LLM(str(checkpoint.folder), **SMALL) as llm:
        assert_golden(checkpoint.prompts, run(llm, checkpoint.prompts))


def test_logprobs_are_within_a_thousandth(checkpoint: TinyCheckpoint) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=5)
    with LLM(str(checkpoint.folder), **SMALL) as llm:
        outputs = run(llm, checkpoint.prompts, params)
    for prompt, output in zip(checkpoint.prompts, outputs, strict=True):
        logprobs = output.outputs[0].logprobs
        assert logprobs is not None
        for got, golden in zip(logprobs, prompt.top5, strict=True):
            assert set(got) == {token for token, _ in golden}
            for rank, (token, logprob) in enumerate(golden, start=1):
                assert got[token].logprob == pytest.approx(logprob, abs=1e-3)
                assert got[token].rank == rank


@pytest.mark.parametrize("max_num_batched_tokens", [7, 64])
def test_chunked_prefill_changes_nothing(
    checkpoint: TinyCheckpoint, max_num_batched_tokens: int
) -> None:
    with LLM(str(checkpoint.folder), **SMALL, max_num_batched_tokens=max_num_batched_tokens) as llm:
        assert_golden(checkpoint.prompts, run(llm, checkpoint.prompts))


@pytest.mark.parametrize("block_size", [1, 4, 16, 128])
def test_the_block_size_changes_nothing(checkpoint: TinyCheckpoint, block_size: int) -> None:
    options = {**SMALL, "num_kv_blocks": 4096 // block_size, "block_size": block_size}
    with LLM(str(checkpoint.folder), **options) as llm:
        assert_golden(checkpoint.prompts, run(llm, checkpoint.prompts))


def test_a_prefix_hit_changes_nothing(checkpoint: TinyCheckpoint) -> None:
    prompts = [p for p in checkpoint.prompts if len(p.prompt_ids) > 40]
    with LLM(str(checkpoint.folder), **SMALL) as llm:
        assert_golden(prompts, run(llm, prompts))
        again = run(llm, prompts)
        assert all(output.num_cached_tokens > 0 for output in again)
        assert_golden(prompts, again)


def test_preemption_changes_nothing(checkpoint: TinyCheckpoint) -> None:
    prompts = [p for p in checkpoint.prompts if len(p.prompt_ids) <= 48]
    blocks = sum(-(-(len(p.prompt_ids) + 1) // 4) for p in prompts) + 4
    options = {**SMALL, "max_model_len": 96, "block_size": 4, "num_kv_blocks": blocks}
    with LLM(str(checkpoint.folder), **options, enable_prefix_caching=False) as llm:
        assert_golden(prompts, run(llm, prompts))
        assert llm.stats()["num_preemptions"] > 0


def test_the_order_of_the_batch_changes_nothing(checkpoint: TinyCheckpoint) -> None:
    prompts = list(checkpoint.prompts)
    with LLM(str(checkpoint.folder), **SMALL, enable_prefix_caching=False) as llm:
        for seed in range(3):
            random.Random(seed).shuffle(prompts)
            assert_golden(prompts, run(llm, prompts))


def test_a_seeded_request_does_not_depend_on_its_batch(checkpoint: TinyCheckpoint) -> None:
    prompts = checkpoint.prompts
    params = [
        SamplingParams(temperature=0.9, top_p=0.9, top_k=50, seed=i, max_tokens=16, ignore_eos=True)
        for i in range(len(prompts))
    ]
    ids = [{"prompt_token_ids": p.prompt_ids} for p in prompts]
    with LLM(str(checkpoint.folder), **SMALL, enable_prefix_caching=False) as llm:
        together = llm.generate(ids, params, use_tqdm=False)
        alone = [llm.generate(i, p, use_tqdm=False)[0] for i, p in zip(ids, params, strict=True)]
    assert [o.outputs[0].token_ids for o in together] == [o.outputs[0].token_ids for o in alone]


def test_prompt_logprobs_do_not_depend_on_chunks(checkpoint: TinyCheckpoint) -> None:
    prompts = [p for p in checkpoint.prompts if 7 <= len(p.prompt_ids) <= 48]
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, prompt_logprobs=2)
    per_budget = []
    for budget in (512, 7):
        with LLM(str(checkpoint.folder), **SMALL, max_num_batched_tokens=budget) as llm:
            per_budget.append([o.prompt_logprobs for o in run(llm, prompts, params)])
    for prompt, whole, chunked in zip(prompts, *per_budget, strict=True):
        assert whole is not None
        assert chunked is not None
        assert len(whole) == len(chunked) == len(prompt.prompt_ids)
        assert whole[0] is None
        for token, a, b in zip(prompt.prompt_ids[1:], whole[1:], chunked[1:], strict=True):
            assert a is not None
            assert b is not None
            assert a[token].logprob == pytest.approx(b[token].logprob, abs=1e-4)
            assert a[token].rank == b[token].rank


def test_penalties_follow_what_was_said(checkpoint: TinyCheckpoint) -> None:
    """A strong repetition penalty: no token twice, whatever the chunking and preemption."""
    params = SamplingParams(
        temperature=0.0,
        max_tokens=24,
        ignore_eos=True,
        presence_penalty=2.0,
        repetition_penalty=50.0,
    )
    prompts = [p for p in checkpoint.prompts if len(p.prompt_ids) <= 48]
    options = {**SMALL, "max_model_len": 96, "block_size": 4}
    results = []
    for extra in ({}, {"max_num_batched_tokens": 7}, {"num_kv_blocks": 36}):
        with LLM(
            str(checkpoint.folder), **{**options, **extra}, enable_prefix_caching=False
        ) as llm:
            results.append([o.outputs[0].token_ids for o in run(llm, prompts, params)])
    assert results[0] == results[1] == results[2]
    for prompt, tokens in zip(prompts, results[0], strict=True):
        assert len(set(tokens)) == len(tokens)
        assert not set(tokens) & set(prompt.prompt_ids)

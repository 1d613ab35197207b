"""The sampling kernels do what the torch sampler does on the CPU, rule by rule."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from dlcore.layers.sampler import sample
from dlcore.ops import kernels, sample_kernels
from dlcore.ops.sample import cut_distribution
from dlcore.step_buffers import PROMPT_SEEN_BIT, DeviceState, Header, SamplerBuffers
from tests.gpu.paged_case import needs_kernels

pytestmark = needs_kernels

MAX_LOGPROBS = 20
CUTS = {  # temperature, top_k, top_p, min_p
    "none": (0.8, 0, 1.0, 0.0),
    "greedy": (0.0, 50, 0.9, 0.1),
    "top_k": (1.0, 50, 1.0, 0.0),
    "top_k_of_one": (1.3, 1, 1.0, 0.0),
    "top_k_of_all": (1.3, 10**6, 1.0, 0.0),
    "top_p": (0.7, 0, 0.9, 0.0),
    "top_p_of_one_token": (0.7, 0, 1e-6, 0.0),
    "min_p": (1.0, 0, 1.0, 0.05),
    "all": (1.0, 200, 0.95, 0.001),
    "flat": (50.0, 0, 0.9, 0.0),
    "flat_top_k": (50.0, 30000, 0.5, 0.0),
}


def _buffers(num_rows: int, vocab: int, columns: list[tuple[float, int, float, float]]):
    """Random rules for every row; the tail's sections follow the header."""
    num_words = (vocab + 31) // 32
    bias = torch.stack(
        [torch.arange(num_rows) % num_rows, torch.randint(vocab, (num_rows,))], dim=1
    ).int()
    bias = torch.cat([bias, (torch.randn(num_rows, 1) * 5).view(torch.int32)], dim=1)
    masks = torch.randint(-(2**31), 2**31, (3, num_words)).int()
    header = torch.zeros(16, dtype=torch.int32)
    header[Header.NUM_BIAS], header[Header.BIAS_OFFSET] = num_rows, 16
    header[Header.NUM_MASKS], header[Header.MASKS_OFFSET] = 3, 16 + bias.numel()
    arena = torch.cat([header, bias.flatten(), masks.flatten()])
    slots = torch.randperm(num_rows + 3)[:num_rows].int()
    slots[-1] = -1
    temperature, top_k, top_p, min_p = (torch.tensor(c) for c in zip(*columns, strict=True))
    targets = torch.full((num_rows,), -1, dtype=torch.int32)
    targets[-1] = 5
    ints = torch.zeros(num_rows, dtype=torch.int32)
    counts = torch.randint(-20, 4, (num_rows + 4, vocab)).clamp(min=0).int()
    counts[torch.rand(counts.shape) < 0.02] |= PROMPT_SEEN_BIT
    sampler = SamplerBuffers(
        variant="full",
        arena=arena,
        header=arena[:16],
        row_slots=slots,
        target_tokens=targets,
        sampled_tokens=ints - 7,
        temperature=temperature.float(),
        top_p=top_p.float(),
        min_p=min_p.float(),
        top_k=top_k.int(),
        seeds=torch.randint(-(2**62), 2**62, (num_rows,)),
        sample_positions=torch.randint(40000, (num_rows,)).int(),
        presence_penalty=torch.randn(num_rows),
        frequency_penalty=torch.randn(num_rows) * 0.1,
        repetition_penalty=torch.rand(num_rows) + 0.5,
        mask_rows=(torch.arange(num_rows) % 5 - 2).clamp(min=-1).int(),
        counts_reset=ints.clone(),
        sampled_logprobs=torch.zeros(num_rows),
        sampled_ranks=ints.clone(),
        top_ids=torch.zeros(num_rows, MAX_LOGPROBS, dtype=torch.int32),
        top_logprobs=torch.zeros(num_rows, MAX_LOGPROBS),
    )
    state = DeviceState(
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        last_tokens=torch.full((num_rows + 4,), -9, dtype=torch.int32),
        token_counts=counts,
        kv_caches=(),
    )
    return sampler, state


def _cuda(buffers):
    moved = {}
    for f in fields(buffers):
        value = getattr(buffers, f.name)
        moved[f.name] = value.cuda() if isinstance(value, Tensor) else value
    if isinstance(buffers, SamplerBuffers):
        moved["header"] = moved["arena"][:16]
    return replace(buffers, **moved)


def _logits(num_rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
    logits = torch.randn(num_rows, vocab) * 3
    logits[torch.rand(logits.shape) < 0.1] = -torch.inf
    return logits.to(dtype)  # bf16: many ties


@pytest.mark.parametrize("variant", ["random", "full"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [37, 1000, 151936])
def test_tokens_equal_the_reference(variant: str, cut: str, dtype: torch.dtype, vocab: int) -> None:
    rows = 9 if vocab > 100000 else 32
    sampler, state = _buffers(rows, vocab, [CUTS[cut]] * rows)
    logits = _logits(rows, vocab, dtype)
    sampler = replace(sampler, variant=variant)
    on_gpu, gpu_state = _cuda(sampler), _cuda(state)
    assert sample_kernels.supports(logits.cuda(), variant)
    sample(logits.cuda(), on_gpu, gpu_state)
    torch.cuda.synchronize()
    sample(logits, sampler, state)
    tokens = on_gpu.sampled_tokens.cpu()
    # A sum of probabilities that rounds differently may move one token across top_p's edge.
    assert int((tokens != sampler.sampled_tokens).sum()) <= (1 if CUTS[cut][2] < 1 else 0)
    assert tokens[-1] == -1
    same = (tokens == sampler.sampled_tokens) & (sampler.row_slots >= 0)
    slots = sampler.row_slots[same].long()
    assert torch.equal(gpu_state.last_tokens.cpu()[slots], state.last_tokens[slots])
    if variant == "full":
        assert torch.equal(gpu_state.token_counts.cpu()[slots], state.token_counts[slots])
        _assert_logprobs_equal(on_gpu, sampler, same | (sampler.target_tokens >= 0))


def _assert_logprobs_equal(on_gpu: SamplerBuffers, expected: SamplerBuffers, rows: Tensor) -> None:
    def pair(name: str) -> tuple[Tensor, Tensor]:
        return getattr(on_gpu, name).cpu()[rows], getattr(expected, name)[rows]

    torch.testing.assert_close(*pair("sampled_logprobs"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*pair("top_logprobs"), rtol=1e-5, atol=1e-5)
    ranks, expected_ranks = pair("sampled_ranks")
    assert (ranks - expected_ranks).abs().max() <= 1  # two logits may round to one logprob
    ids, values = on_gpu.top_ids.cpu()[rows], on_gpu.top_logprobs.cpu()[rows]
    exists = values > -torch.inf
    assert (ids[~exists] == -1).all()
    for row_ids, row_exists in zip(ids, exists, strict=True):
        assert row_ids[row_exists].unique().numel() == int(row_exists.sum())


def test_rows_of_one_batch_may_differ_in_everything() -> None:
    sampler, state = _buffers(len(CUTS) + 1, 151936, [*CUTS.values(), CUTS["none"]])
    logits = _logits(len(CUTS) + 1, 151936, torch.float32)
    on_gpu, gpu_state = _cuda(sampler), _cuda(state)
    sample(logits.cuda(), on_gpu, gpu_state)
    sample(logits, sampler, state)
    assert int((on_gpu.sampled_tokens.cpu() != sampler.sampled_tokens).sum()) <= 1


@pytest.mark.parametrize("cut", ["none", "top_k", "top_p", "min_p", "all"])
@pytest.mark.parametrize("rows", [32, 4096])  # a cluster for each row, or a block
def test_draws_follow_the_cut_distribution(cut: str, rows: int) -> None:
    vocab, num_draws = 64, 8192
    temperature, top_k, top_p, min_p = CUTS[cut]
    column = (temperature, min(top_k, 20), top_p, min_p)
    sampler, state = _buffers(rows, vocab, [column] * rows)
    sampler, state = _cuda(replace(sampler, variant="random")), _cuda(state)
    logits = torch.randn(1, vocab, device="cuda") * 2
    cuts = [getattr(sampler, name)[:1] for name in ("top_k", "top_p", "min_p")]
    kept = cut_distribution(logits / temperature, *cuts).softmax(dim=-1)[0]
    expected, counts = kept * num_draws, torch.zeros_like(kept)
    space = kernels.argmax_workspace(rows, logits.device)
    for position in range(num_draws // rows):
        sampler.sample_positions.fill_(position)
        if rows <= sample_kernels.MAX_RANDOM_ROWS:
            sampler.row_slots.copy_(torch.arange(rows))
            sample_kernels.draw(logits.expand(rows, -1).contiguous(), sampler, state)
            tokens = sampler.sampled_tokens
        else:
            values = (sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p)
            values += (sampler.seeds, sampler.sample_positions)
            tokens = kernels.random_sample(logits.expand(rows, -1).contiguous(), *values, space)
        counts += tokens.long().bincount(minlength=vocab)
    assert counts[kept == 0].sum() == 0
    common = expected >= 5
    chi_square = ((counts - expected) ** 2 / expected)[common].sum().item()
    freedom = int(common.sum()) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_equal_logits_are_cut_by_index(value: float) -> None:
    rows, vocab = 8, 151936
    cut = (1.0, 0, 0.001, 0.0)
    sampler, state = _buffers(rows, vocab, [cut] * rows)
    sampler = replace(sampler, variant="random")
    on_gpu = _cuda(sampler)
    sample(torch.full((rows, vocab), value).cuda(), on_gpu, _cuda(state))
    kept = on_gpu.sampled_tokens.cpu()[:-1]
    assert bool(((kept >= 0) & (kept <= int(vocab * 0.001) + 1)).all())


def test_a_row_without_an_allowed_token_says_so() -> None:
    sampler, state = _buffers(4, 1000, [CUTS["all"]] * 4)
    on_gpu = _cuda(sampler)
    logits = torch.randn(4, 1000)
    logits[0], logits[1, 7] = -torch.inf, torch.nan
    sample(logits.cuda(), on_gpu, _cuda(state))
    assert [t < 0 for t in on_gpu.sampled_tokens.tolist()] == [True, True, False, True]

"""Masks, bias and penalties against one token at a time."""

from __future__ import annotations

import math

import pytest
import torch
from model.rule_cases import VOCAB, make_case, reference_counts

from dlcore.ops.begin_step import begin_step
from dlcore.ops.logits_rules import (
    apply_bias,
    apply_masks,
    apply_penalties,
    count_sampled,
    update_token_counts,
)
from dlcore.step_buffers import PROMPT_SEEN_BIT


@pytest.mark.parametrize("seed", range(10))
def test_counts_follow_the_history(seed: int) -> None:
    case, other = make_case(seed), make_case(seed)
    update_token_counts(case.sampler, case.state)
    rows = case.sampler.row_slots[case.sampler.row_slots >= 0].long()
    assert torch.equal(case.state.token_counts[rows], reference_counts(other)[rows])
    untouched = [i for i in range(8) if i not in rows.tolist()]
    assert torch.equal(case.state.token_counts[untouched], other.state.token_counts[untouched])


@pytest.mark.parametrize("seed", range(10))
def test_masks_forbid_what_they_say(seed: int) -> None:
    case = make_case(seed)
    logits = torch.randn(5, VOCAB)
    got = apply_masks(logits, case.sampler)
    for row, mask in enumerate([0, None, 1, None, None]):
        for token in range(VOCAB):
            allowed = mask is None or bool(case.masks[mask, token])
            assert got[row, token].item() == (logits[row, token].item() if allowed else -math.inf)


@pytest.mark.parametrize("seed", range(10))
def test_bias_entries_add_up(seed: int) -> None:
    case = make_case(seed)
    logits = torch.randn(5, VOCAB)
    want = logits.clone()
    for row, token, bias in case.bias:
        want[row, token] += bias
    apply_bias(logits, case.sampler)
    torch.testing.assert_close(logits, want)


@pytest.mark.parametrize("seed", range(10))
def test_penalties_are_vllms(seed: int) -> None:
    case = make_case(seed)
    generator = torch.Generator().manual_seed(seed)
    sampler = case.sampler
    assert sampler.presence_penalty is not None
    assert sampler.frequency_penalty is not None
    assert sampler.repetition_penalty is not None
    sampler.presence_penalty.copy_(torch.rand(5, generator=generator) * 2 - 1)
    sampler.frequency_penalty.copy_(torch.rand(5, generator=generator) * 2 - 1)
    sampler.repetition_penalty.copy_(torch.rand(5, generator=generator) + 0.5)
    update_token_counts(sampler, case.state)
    logits = torch.randn(5, VOCAB, generator=generator)
    got = apply_penalties(logits, sampler, case.state)
    for row, slot in enumerate(sampler.row_slots.tolist()[:4]):
        for token in range(VOCAB):
            count = int(case.state.token_counts[slot, token])
            want = logits[row, token].item()
            if count:
                repetition = sampler.repetition_penalty[row].item()
                want = want / repetition if want > 0 else want * repetition
            outputs = count & (PROMPT_SEEN_BIT - 1)
            want -= sampler.frequency_penalty[row].item() * outputs
            want -= sampler.presence_penalty[row].item() * (outputs > 0)
            assert got[row, token].item() == pytest.approx(want, abs=1e-4)


def test_a_sampled_token_is_counted_once_in_its_own_slot() -> None:
    case = make_case(0)
    before = case.state.token_counts.clone()
    tokens = torch.tensor([3, 3, 7, 9, 11], dtype=torch.int32)
    count_sampled(tokens, case.sampler, case.state)
    change = (case.state.token_counts - before)[:-1]
    want = torch.zeros_like(change)
    for token, slot in list(zip(tokens.tolist(), case.sampler.row_slots.tolist(), strict=True))[:4]:
        want[slot, token] = 1
    assert torch.equal(change, want)


def test_a_pending_token_is_the_one_its_slot_sampled_last() -> None:
    case = make_case(1)
    case.state.last_tokens.copy_(torch.arange(100, 109))
    case.step.seq_slots.copy_(torch.tensor([4, 2, 7, -1, -1]))
    case.step.token_seq.copy_(torch.tensor([0, 1, 1, 2] + [-1] * 12))
    case.step.token_ids.copy_(torch.tensor([-1, 5, 6, -1] + [0] * 12))
    ids = begin_step(case.step, case.state)
    assert ids[:4].tolist() == [104, 5, 6, 107]
    for index, block in case.block_updates:
        assert case.state.block_tables.view(-1)[index] == block

"""Greedy rows whose logits are never written get the tokens of those whose logits are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlcore.layers import sampler as sampler_layer
from dlcore.step_buffers import DeviceState, SamplerBuffers

ROWS, HIDDEN, VOCAB, SLOTS = 5, 16, 40, 8


class Head:
    lm_head_weight = torch.randn(VOCAB, HIDDEN)

    def compute_logits(self, rows: Tensor) -> Tensor:
        return rows @ self.lm_head_weight.T


def _buffers(variant: str) -> SamplerBuffers:
    empty = torch.zeros(0, dtype=torch.int32)
    return SamplerBuffers(
        variant=variant,
        arena=empty,
        header=empty,
        row_slots=torch.tensor([6, -1, 0, 3, 1], dtype=torch.int32),
        target_tokens=torch.full((ROWS,), -1, dtype=torch.int32),
        sampled_tokens=torch.full((ROWS,), -9, dtype=torch.int32),
        temperature=torch.zeros(ROWS),
        top_p=torch.ones(ROWS),
        min_p=torch.zeros(ROWS),
        top_k=torch.zeros(ROWS, dtype=torch.int32),
        seeds=torch.zeros(ROWS, dtype=torch.int64),
        sample_positions=torch.zeros(ROWS, dtype=torch.int32),
    )


def _state() -> DeviceState:
    return DeviceState(
        block_tables=torch.zeros(0, dtype=torch.int32),
        last_tokens=torch.full((SLOTS + 1,), -7, dtype=torch.int32),
        token_counts=torch.zeros(0, dtype=torch.int32),
        kv_caches=(),
        argmax_space=torch.zeros(1, dtype=torch.uint8),
    )


def _reference(
    rows: Tensor, weight: Tensor, slots: Tensor, sampled: Tensor, last: Tensor, space: Tensor
) -> None:
    """What `linear_argmax` promises."""
    assert space.dtype == torch.uint8
    best = (rows @ weight.T).argmax(dim=-1).int()
    sampled.copy_(best.where(slots >= 0, -1))
    live = slots >= 0
    last[slots[live].long()] = best[live]


def test_a_greedy_step_takes_the_kernel_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, head = torch.randn(ROWS, HIDDEN), Head()
    by_logits, state = _buffers("greedy"), _state()
    sampler_layer.sample_rows(head, rows, by_logits, state)
    monkeypatch.setattr(sampler_layer, "linear_argmax_pays", lambda *_: True)
    monkeypatch.setattr(sampler_layer, "linear_argmax", _reference)
    monkeypatch.setattr(head, "compute_logits", None)
    by_kernel, other = _buffers("greedy"), _state()
    sampler_layer.sample_rows(head, rows, by_kernel, other)
    assert torch.equal(by_kernel.sampled_tokens, by_logits.sampled_tokens)
    assert by_kernel.sampled_tokens[1] == -1
    assert torch.equal(other.last_tokens[:SLOTS], state.last_tokens[:SLOTS])  # then scratch


def test_rows_that_draw_need_their_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, head = torch.randn(ROWS, HIDDEN), Head()
    monkeypatch.setattr(sampler_layer, "linear_argmax_pays", lambda *_: True)
    monkeypatch.setattr(sampler_layer, "linear_argmax", None)
    sampler, state = _buffers("random"), _state()
    sampler_layer.sample_rows(head, rows, sampler, state)
    live = sampler.row_slots >= 0
    best = head.compute_logits(rows).argmax(dim=-1).int()
    assert torch.equal(sampler.sampled_tokens[live], best[live])  # of temperature 0

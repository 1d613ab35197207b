"""Logits to tokens, one function per sampler variant; each includes the variant before."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dlcore.ops import kernels, sample_kernels
from dlcore.ops.linear_argmax import linear_argmax, linear_argmax_pays
from dlcore.ops.logits_rules import (
    apply_bias,
    apply_masks,
    apply_penalties,
    count_sampled,
    update_token_counts,
)
from dlcore.ops.logprobs import write_logprobs
from dlcore.ops.sample import greedy_sample, random_sample
from dlcore.step_buffers import DeviceState, SamplerBuffers


class LMHead(Protocol):
    """What sampling needs of a model: see CausalLM."""

    @property
    def lm_head_weight(self) -> Tensor: ...

    def compute_logits(self, rows: Tensor) -> Tensor: ...


def sample_rows(head: LMHead, rows: Tensor, sampler: SamplerBuffers, state: DeviceState) -> None:
    """`sample` of the hidden states rows [S, hidden], without logits where none need be kept."""
    weight, space = head.lm_head_weight, state.argmax_space
    if sampler.variant == "greedy" and space is not None and linear_argmax_pays(rows, weight):
        slots, tokens = sampler.row_slots, sampler.sampled_tokens
        linear_argmax(rows, weight, slots, tokens, state.last_tokens, space)
    else:
        sample(head.compute_logits(rows), sampler, state)


def sample(logits: Tensor, sampler: SamplerBuffers, state: DeviceState) -> None:
    """logits: [S, V], any float dtype. Writes the outputs and `state.last_tokens`."""
    space = state.argmax_space
    if sampler.variant == "greedy" and space is not None and kernels.argmax_supports(logits):
        kernels.argmax(logits, sampler.row_slots, sampler.sampled_tokens, state.last_tokens, space)
        return
    if sampler.variant != "greedy" and sample_kernels.supports(logits, sampler.variant):
        _sample_by_kernels(logits, sampler, state)
        return
    # Padding and prompt-logprob rows have slot -1: no token, and the scratch row of last_tokens.
    no_token = sampler.row_slots < 0
    if sampler.variant == "greedy":
        tokens = greedy_sample(logits)
    elif sampler.variant == "random":
        tokens = _random(logits, sampler, state)
    else:
        tokens, none_allowed = _full(logits.float(), sampler, state)
        no_token = no_token | none_allowed
    sampler.sampled_tokens.copy_(tokens.masked_fill(no_token, -1))
    state.last_tokens[sampler.row_slots.long()] = tokens


def _sample_by_kernels(logits: Tensor, sampler: SamplerBuffers, state: DeviceState) -> None:
    if sampler.variant == "full":
        update_token_counts(sampler, state)
    sample_kernels.draw(logits, sampler, state)
    if sampler.variant == "full":
        sample_kernels.write_logprobs(logits, sampler)


def _random(logits: Tensor, sampler: SamplerBuffers, state: DeviceState) -> Tensor:
    assert sampler.temperature is not None
    assert sampler.top_k is not None
    assert sampler.top_p is not None
    assert sampler.min_p is not None
    assert sampler.seeds is not None
    assert sampler.sample_positions is not None
    return random_sample(
        logits,
        sampler.temperature,
        sampler.top_k,
        sampler.top_p,
        sampler.min_p,
        sampler.seeds,
        sampler.sample_positions,
        state.argmax_space,
    )


def _full(logits: Tensor, sampler: SamplerBuffers, state: DeviceState) -> tuple[Tensor, Tensor]:
    """Tokens [S], and True [S] where the rules left none to choose (or logits are NaN)."""
    assert sampler.sampled_logprobs is not None
    assert sampler.sampled_ranks is not None
    assert sampler.top_ids is not None
    assert sampler.top_logprobs is not None
    update_token_counts(sampler, state)
    ruled = apply_masks(logits.clone(), sampler)
    apply_bias(ruled, sampler)
    ruled = apply_penalties(ruled, sampler, state)
    tokens = _random(ruled, sampler, state)
    count_sampled(tokens, sampler, state)
    scored = sampler.target_tokens.where(sampler.target_tokens >= 0, tokens)
    write_logprobs(
        logits,
        scored,
        sampler.sampled_logprobs,
        sampler.sampled_ranks,
        sampler.top_ids,
        sampler.top_logprobs,
    )
    return tokens, ~(ruled.amax(dim=-1) > -torch.inf)

"""The CUDA kernels that rule, draw and score tokens: struct dlk_draw and dlk_logprobs."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.step_buffers import DeviceState, SamplerBuffers

_PTR, _INT = ctypes.c_void_p, ctypes.c_int
MAX_VOCAB = 320_000  # eight blocks' shared memory holds a row
# Without rules, ops.kernels.random_sample is faster for more rows: its one block a row keeps them
# all in flight, where clusters of eight need several waves.
MAX_RANDOM_ROWS = 32


def _fields(pointers: str, integers: str) -> tuple[tuple[str, type], ...]:
    return (*((n, _PTR) for n in pointers.split()), *((n, _INT) for n in integers.split()))


class _Draw(ctypes.Structure):
    """struct dlk_draw."""

    _fields_ = _fields(
        "logits row_slots temperature top_p min_p top_k seeds sample_positions sampled last_tokens "
        "arena mask_rows presence_penalty frequency_penalty repetition_penalty token_counts",
        "logits_are_bf16 num_rows vocab",
    )


class _Logprobs(ctypes.Structure):
    """struct dlk_logprobs."""

    _fields_ = _fields(
        "logits target_tokens sampled logprobs ranks top_ids top_logprobs",
        "logits_are_bf16 num_rows vocab num_top",
    )


def supports(logits: Tensor, variant: str) -> bool:
    """Whether the kernels take these logits, and are the fastest way for this sampler variant."""
    return (
        (variant == "full" or logits.shape[0] <= MAX_RANDOM_ROWS)
        and kernels.runs_on(logits.device)
        and logits.dtype in (torch.bfloat16, torch.float32)
        and logits.is_contiguous()
        and logits.shape[1] <= MAX_VOCAB
    )


def draw(logits: Tensor, sampler: SamplerBuffers, state: DeviceState) -> None:
    """One draw per row of logits [S, V] bf16 or float32 into `sampled_tokens` and `last_tokens`.

    The variant "full" applies masks, bias and penalties first and counts the token; its
    `token_counts` must be up to date (logits_rules.update_token_counts).
    """
    is_full = sampler.variant == "full"
    pointer = kernels.pointer
    args = _Draw(
        logits=pointer(logits),
        row_slots=pointer(sampler.row_slots),
        temperature=pointer(sampler.temperature),
        top_p=pointer(sampler.top_p),
        min_p=pointer(sampler.min_p),
        top_k=pointer(sampler.top_k),
        seeds=pointer(sampler.seeds),
        sample_positions=pointer(sampler.sample_positions),
        sampled=pointer(sampler.sampled_tokens),
        last_tokens=pointer(state.last_tokens),
        arena=pointer(sampler.arena) if is_full else None,
        mask_rows=pointer(sampler.mask_rows),
        presence_penalty=pointer(sampler.presence_penalty),
        frequency_penalty=pointer(sampler.frequency_penalty),
        repetition_penalty=pointer(sampler.repetition_penalty),
        token_counts=pointer(state.token_counts) if is_full else None,
        logits_are_bf16=int(logits.dtype == torch.bfloat16),
        num_rows=logits.shape[0],
        vocab=logits.shape[1],
    )
    kernels.call("dlk_sample", args)


def write_logprobs(logits: Tensor, sampler: SamplerBuffers) -> None:
    """Logprob and rank of each row's target or sampled token, and the top ones, of raw `logits`
    [S, V]; see ops.logprobs. Padding rows keep what they had."""
    assert sampler.top_ids is not None
    pointer = kernels.pointer
    args = _Logprobs(
        logits=pointer(logits),
        target_tokens=pointer(sampler.target_tokens),
        sampled=pointer(sampler.sampled_tokens),
        logprobs=pointer(sampler.sampled_logprobs),
        ranks=pointer(sampler.sampled_ranks),
        top_ids=pointer(sampler.top_ids),
        top_logprobs=pointer(sampler.top_logprobs),
        logits_are_bf16=int(logits.dtype == torch.bfloat16),
        num_rows=logits.shape[0],
        vocab=logits.shape[1],
        num_top=sampler.top_ids.shape[1],
    )
    kernels.call("dlk_logprobs_of", args)

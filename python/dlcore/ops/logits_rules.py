"""The rules that change logits before a draw: masks, bias, penalties, and the counts behind them.

Their entries lie in the tail of the arena, as many as the header says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlcore.ops import step_kernels
from dlcore.step_buffers import (
    HISTORY_OUTPUT_FLAG,
    PROMPT_SEEN_BIT,
    DeviceState,
    Header,
    SamplerBuffers,
)


def apply_masks(logits: Tensor, sampler: SamplerBuffers) -> Tensor:
    """Sets tokens a row's mask forbids to -inf. Bit t % 32 of word t // 32 set = t allowed."""
    assert sampler.mask_rows is not None
    header, vocab = sampler.header, logits.shape[-1]
    if not header.is_cuda and int(header[Header.NUM_MASKS]) == 0:
        return logits
    num_words = (vocab + 31) // 32
    words_of_row = torch.arange(num_words, device=logits.device)
    row = sampler.mask_rows.clamp(min=0).long()
    index = header[Header.MASKS_OFFSET].long() + row[:, None] * num_words + words_of_row
    words = sampler.arena[index.clamp_(max=sampler.arena.shape[0] - 1)]
    bits = torch.arange(32, device=logits.device, dtype=torch.int32)
    allowed = ((words[:, :, None] >> bits) & 1).bool().flatten(1)[:, :vocab]
    return logits.masked_fill(~allowed & (sampler.mask_rows >= 0)[:, None], -torch.inf)


def apply_bias(logits: Tensor, sampler: SamplerBuffers) -> None:
    """Adds the step's (row, token, bias) entries to `logits` [S, V] float32, in place."""
    if logits.is_cuda:
        step_kernels.apply_bias(logits, sampler)
        return
    entries = _tail(sampler, Header.NUM_BIAS, Header.BIAS_OFFSET, 3)
    if entries is not None:
        index = (entries[:, 0].long(), entries[:, 1].long())
        values = entries[:, 2].contiguous().view(torch.float32)
        logits.index_put_(index, values, accumulate=True)


def update_token_counts(sampler: SamplerBuffers, state: DeviceState) -> None:
    """Clears the counts of slots that ask for it, then counts the step's history entries."""
    assert sampler.counts_reset is not None
    if sampler.header.is_cuda:
        step_kernels.update_token_counts(sampler, state)
        return
    counts = state.token_counts
    reset = sampler.row_slots[sampler.counts_reset != 0].long()
    counts[reset] = 0
    entries = _tail(sampler, Header.NUM_HISTORY, Header.HISTORY_OFFSET, 2)
    if entries is None:
        return
    slots = sampler.row_slots[entries[:, 0].long()].long()
    tokens = entries[:, 1].long()
    output = tokens >= HISTORY_OUTPUT_FLAG
    tokens = tokens & (HISTORY_OUTPUT_FLAG - 1)
    prompt = (slots[~output], tokens[~output])
    counts[prompt] = counts[prompt] | PROMPT_SEEN_BIT
    ones = counts.new_ones(())
    counts.index_put_((slots[output], tokens[output]), ones, accumulate=True)


def apply_penalties(logits: Tensor, sampler: SamplerBuffers, state: DeviceState) -> Tensor:
    """Repetition (prompt and output), frequency and presence (output) penalties, as in vLLM."""
    assert sampler.repetition_penalty is not None
    assert sampler.frequency_penalty is not None
    assert sampler.presence_penalty is not None
    counts = state.token_counts[sampler.row_slots.long()]
    outputs = counts & (PROMPT_SEEN_BIT - 1)
    repetition = sampler.repetition_penalty[:, None].where(counts != 0, 1.0)
    logits = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = logits - sampler.frequency_penalty[:, None] * outputs
    return logits - sampler.presence_penalty[:, None] * (outputs > 0)


def count_sampled(tokens: Tensor, sampler: SamplerBuffers, state: DeviceState) -> None:
    """Adds one output of `tokens` [S] int32 to its row's slot (padding: to the scratch row)."""
    index = (sampler.row_slots.long(), tokens.clamp(min=0).long())
    # Slots are distinct but for the scratch row, so a plain read-modify-write is enough.
    state.token_counts[index] = state.token_counts[index] + 1


def _tail(sampler: SamplerBuffers, count: Header, offset: Header, width: int) -> Tensor | None:
    """The entries of one tail section on the CPU, [n, width], or None when there are none."""
    n = int(sampler.header[count])
    if n == 0:
        return None
    start = int(sampler.header[offset])
    return sampler.arena[start : start + n * width].view(n, width)

"""Random tails: masks, bias, histories and block updates, as a step carries them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlcore import _core
from dlcore.model_runner import allocate_state
from dlcore.step_buffers import (
    HISTORY_OUTPUT_FLAG,
    PROMPT_SEEN_BIT,
    Arenas,
    DeviceState,
    Header,
    SamplerBuffers,
    StepBuffers,
)

VOCAB, ROWS = 64, 5


@dataclass
class RuleCase:
    step: StepBuffers
    sampler: SamplerBuffers
    state: DeviceState
    history: list[tuple[int, int, bool]]  # row, token, generated
    bias: list[tuple[int, int, float]]
    masks: np.ndarray  # [n, VOCAB] bool
    block_updates: list[tuple[int, int]]


def make_case(seed: int) -> RuleCase:
    rng = np.random.default_rng(seed)
    options = _core.EngineOptions(
        max_num_batched_tokens=16,
        max_num_seqs=8,
        max_model_len=64,
        block_size=4,
        vocab_size=VOCAB,
        num_kv_blocks=64,
        cache_groups=[("paged", 1, 1, 0)],
    )
    arenas = Arenas.allocate(options, torch.device("cpu"))
    key = _core.StepKey("mixed", "full", 16, ROWS)
    step, sampler = arenas.step_buffers(key), arenas.sampler_buffers(key)
    state = allocate_state(options, (), torch.device("cpu"))
    state.token_counts.copy_(torch.from_numpy(rng.integers(0, 3, state.token_counts.shape)))
    slots = rng.permutation(8)[:ROWS].astype(np.int32)
    slots[-1] = -1  # padding
    sampler.row_slots.copy_(torch.from_numpy(slots))
    reset = rng.integers(0, 2, ROWS).astype(np.int32)
    assert sampler.counts_reset is not None
    assert sampler.mask_rows is not None
    sampler.counts_reset.copy_(torch.from_numpy(reset))
    masks = rng.random((2, VOCAB)) < 0.5
    sampler.mask_rows.copy_(torch.tensor([0, -1, 1, -1, -1]))
    rows = [int(r) for r in rng.integers(0, ROWS - 1, 300)]
    history = [(r, int(rng.integers(0, VOCAB)), bool(rng.random() < 0.5)) for r in rows]
    bias = [(r, int(rng.integers(0, VOCAB)), float(rng.normal())) for r in rows[:270]]
    updates = [(int(i), int(rng.integers(0, 64))) for i in rng.permutation(8 * 16)[:40]]
    case = RuleCase(step, sampler, state, history, bias, masks, updates)
    _write_tail(case, _core.StepLayout(options, key).tail_offset // 4)
    return case


def _write_tail(case: RuleCase, offset: int) -> None:
    flags = [(r, t | (HISTORY_OUTPUT_FLAG if out else 0)) for r, t, out in case.history]
    words = np.packbits(case.masks, axis=1, bitorder="little").view(np.int32)
    values = np.array([b for _, _, b in case.bias], np.float32).view(np.int32)
    bias = [(r, t, int(v)) for (r, t, _), v in zip(case.bias, values, strict=True)]
    sections = [
        (Header.NUM_BLOCK_UPDATES, Header.BLOCK_UPDATES_OFFSET, np.array(case.block_updates)),
        (Header.NUM_HISTORY, Header.HISTORY_OFFSET, np.array(flags)),
        (Header.NUM_BIAS, Header.BIAS_OFFSET, np.array(bias)),
        (Header.NUM_MASKS, Header.MASKS_OFFSET, words),
    ]
    for count, where, rows in sections:
        case.step.header[count] = len(rows)
        case.step.header[where] = offset
        case.step.arena[offset : offset + rows.size] = torch.from_numpy(
            rows.astype(np.int32).ravel()
        )
        offset += rows.size


def reference_counts(case: RuleCase) -> Tensor:
    counts = case.state.token_counts.clone()
    slots = case.sampler.row_slots.tolist()
    assert case.sampler.counts_reset is not None
    for row, reset in enumerate(case.sampler.counts_reset.tolist()):
        if reset and slots[row] >= 0:
            counts[slots[row]] = 0
    for row, token, generated in case.history:
        if generated:
            counts[slots[row], token] += 1
        else:
            counts[slots[row], token] |= PROMPT_SEEN_BIT
    return counts

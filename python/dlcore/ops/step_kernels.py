# Triton has no type stubs, and a kernel's arguments are pointers, not tensors.
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,unused-ignore"
"""Triton kernels for the tail of the arena, whose sections' lengths only the device knows.

A fixed number of programs walks each section; a captured launch holds for any length. A torch
version beside each caller serves the CPU.
"""

from __future__ import annotations

from torch import Tensor

from dlcore.step_buffers import (
    HISTORY_OUTPUT_FLAG,
    PROMPT_SEEN_BIT,
    DeviceState,
    Header,
    SamplerBuffers,
    StepBuffers,
)

try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU build of torch
    triton = None
    tl = None

NUM_PROGRAMS = 64
TILE = 256


def apply_block_updates(step: StepBuffers, state: DeviceState) -> None:
    """block_tables[flat index] = block id, for every entry of the section."""
    _block_updates_kernel[(NUM_PROGRAMS,)](
        step.arena, state.block_tables,
        COUNT=int(Header.NUM_BLOCK_UPDATES), OFFSET=int(Header.BLOCK_UPDATES_OFFSET),
        PROGRAMS=NUM_PROGRAMS, TILE=TILE,
    )  # fmt: skip


def apply_bias(logits: Tensor, sampler: SamplerBuffers) -> None:
    """logits[row, token] += bias, for every entry of the section. logits: [S, V] float32."""
    _bias_kernel[(NUM_PROGRAMS,)](
        sampler.arena, logits, logits.stride(0),
        COUNT=int(Header.NUM_BIAS), OFFSET=int(Header.BIAS_OFFSET),
        PROGRAMS=NUM_PROGRAMS, TILE=TILE,
    )  # fmt: skip


def update_token_counts(sampler: SamplerBuffers, state: DeviceState) -> None:
    """Clears the slots that ask for it, then counts the history section."""
    assert sampler.counts_reset is not None
    counts = state.token_counts
    _reset_counts_kernel[(sampler.row_slots.shape[0], NUM_PROGRAMS)](
        sampler.counts_reset, sampler.row_slots, counts, counts.shape[1], counts.stride(0),
        PROGRAMS=NUM_PROGRAMS, TILE=1024,
    )  # fmt: skip
    _history_kernel[(NUM_PROGRAMS,)](
        sampler.arena, sampler.row_slots, counts, counts.stride(0),
        COUNT=int(Header.NUM_HISTORY), OFFSET=int(Header.HISTORY_OFFSET),
        OUTPUT_FLAG=HISTORY_OUTPUT_FLAG, PROMPT_BIT=PROMPT_SEEN_BIT,
        PROGRAMS=NUM_PROGRAMS, TILE=TILE,
    )  # fmt: skip


if triton is not None:

    @triton.jit
    def _block_updates_kernel(
        arena,
        block_tables,
        COUNT: tl.constexpr,  # noqa: N803
        OFFSET: tl.constexpr,  # noqa: N803
        PROGRAMS: tl.constexpr,  # noqa: N803
        TILE: tl.constexpr,  # noqa: N803
    ):
        count = tl.load(arena + COUNT)
        entries = arena + tl.load(arena + OFFSET)
        for start in range(tl.program_id(0) * TILE, count, PROGRAMS * TILE):
            i = start + tl.arange(0, TILE)
            ok = i < count
            index = tl.load(entries + 2 * i, mask=ok, other=0)
            block = tl.load(entries + 2 * i + 1, mask=ok, other=0)
            tl.store(block_tables + index, block, mask=ok)

    @triton.jit
    def _bias_kernel(
        arena,
        logits,
        row_stride,
        COUNT: tl.constexpr,  # noqa: N803
        OFFSET: tl.constexpr,  # noqa: N803
        PROGRAMS: tl.constexpr,  # noqa: N803
        TILE: tl.constexpr,  # noqa: N803
    ):
        count = tl.load(arena + COUNT)
        entries = arena + tl.load(arena + OFFSET)
        for start in range(tl.program_id(0) * TILE, count, PROGRAMS * TILE):
            i = start + tl.arange(0, TILE)
            ok = i < count
            row = tl.load(entries + 3 * i, mask=ok, other=0)
            token = tl.load(entries + 3 * i + 1, mask=ok, other=0)
            bias = tl.load(entries + 3 * i + 2, mask=ok, other=0).to(tl.float32, bitcast=True)
            tl.atomic_add(logits + row.to(tl.int64) * row_stride + token, bias, mask=ok)

    @triton.jit
    def _reset_counts_kernel(
        counts_reset,
        row_slots,
        counts,
        vocab_size,
        row_stride,
        PROGRAMS: tl.constexpr,  # noqa: N803
        TILE: tl.constexpr,  # noqa: N803
    ):
        row = tl.program_id(0)
        slot = tl.load(row_slots + row)
        if (tl.load(counts_reset + row) != 0) & (slot >= 0):
            target = counts + slot.to(tl.int64) * row_stride
            for start in range(tl.program_id(1) * TILE, vocab_size, PROGRAMS * TILE):
                i = start + tl.arange(0, TILE)
                tl.store(target + i, tl.zeros([TILE], tl.int32), mask=i < vocab_size)

    @triton.jit
    def _history_kernel(
        arena,
        row_slots,
        counts,
        row_stride,
        COUNT: tl.constexpr,  # noqa: N803
        OFFSET: tl.constexpr,  # noqa: N803
        OUTPUT_FLAG: tl.constexpr,  # noqa: N803
        PROMPT_BIT: tl.constexpr,  # noqa: N803
        PROGRAMS: tl.constexpr,  # noqa: N803
        TILE: tl.constexpr,  # noqa: N803
    ):
        count = tl.load(arena + COUNT)
        entries = arena + tl.load(arena + OFFSET)
        for start in range(tl.program_id(0) * TILE, count, PROGRAMS * TILE):
            i = start + tl.arange(0, TILE)
            ok = i < count
            row = tl.load(entries + 2 * i, mask=ok, other=0)
            entry = tl.load(entries + 2 * i + 1, mask=ok, other=0)
            slot = tl.load(row_slots + row, mask=ok, other=-1)
            ok = ok & (slot >= 0)
            is_output = entry >= OUTPUT_FLAG
            token = entry & (OUTPUT_FLAG - 1)
            target = counts + slot.to(tl.int64) * row_stride + token
            tl.atomic_add(target, 1, mask=ok & is_output)
            tl.atomic_or(target, PROMPT_BIT, mask=ok & (entry < OUTPUT_FLAG))

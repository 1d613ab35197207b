"""The CUDA kernel for products with some tens of tokens, and the rule that chooses its tile."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from dlcore.ops import kernels

STEP = 64  # values of K in a stage of a block's ring
# Leaves a multiprocessor room for the next kernel's block, which requests its first weights
# before this one has ended: a deeper ring is faster alone, and slower in a chain of small layers.
RING_BYTES = 144 * 1024
# With many rows a block is alone and reads long: stages of 192 rows by tokens of the tile.
MANY_ROWS = 64 * kernels.MULTIPROCESSORS
DEEP_RING = {32: 5, 64: 7, 128: 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTile:
    """How `tile_linear` shares a product out among blocks."""

    tokens: int  # of a block's tile: 32, 64, 128 or 256
    rows: int  # of the weight: 64, 128 or 192
    boxes: int = 1  # of 64 values of K in a stage of a block's ring; 2 up to 64 tokens, 128 rows
    sharers: int = 1  # 1, 2 or 4 blocks of other rows bring the tokens together
    splits: int = 1  # 1, 2, 4 or 8 blocks share K; sharers * splits is at most 8
    stages: int  # of a block's ring, 2 to 16


@functools.cache
def linear_tile(num_tokens: int, rows: int, k: int) -> LinearTile | None:
    """The tile for a product with a weight [rows, k], or None where another kernel is faster.

    Measured within decode steps of 16 to 256 sequences on an H100.
    """
    if num_tokens < 1 or rows % 16 or k % STEP or k < 4 * STEP:
        return None
    tokens = 32 if num_tokens <= 32 else 64 if num_tokens <= 64 else 128
    if num_tokens <= 128 and rows > MANY_ROWS:
        return LinearTile(tokens=tokens, rows=192, stages=min(DEEP_RING[tokens], k // STEP))
    if num_tokens > 64 and not _pays_for_hundreds(num_tokens, rows, k):
        return None
    splits = _splits(-(-rows // 64), k)
    stages = RING_BYTES // ((tokens + 64) * STEP * 2)
    return LinearTile(
        tokens=tokens, rows=64, splits=splits, stages=min(stages, k // STEP // splits)
    )


def _pays_for_hundreds(num_tokens: int, rows: int, k: int) -> bool:
    """Whether tiles of 128 tokens and 64 rows are faster than the library's: of small weights."""
    small = rows <= 4096 and k < 4096
    return small and (num_tokens <= 128 or (num_tokens <= 256 and rows > 2048))


def _splits(blocks: int, k: int) -> int:
    """Of K: until half of the multiprocessors have a block, or all of them where K is long."""
    splits = 1
    while splits < 8 and 2 * splits * blocks <= kernels.MULTIPROCESSORS and k // splits >= 8 * STEP:
        if splits * blocks >= kernels.MULTIPROCESSORS // 2 - 2 and k // splits < 4096:
            break
        splits *= 2
    return splits


def tile_linear(
    x: Tensor,
    weight: Tensor,
    tile: LinearTile,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
) -> Tensor:
    """x: [T, K], weight: [N, K] -> [T, N] = x weight^T + bias + residual.

    swiglu: weight is [2N, K], gates then ups, and the result silu(gate) * up: [T, N].
    """
    num_tokens, k = x.shape
    n = weight.shape[0] // (2 if swiglu else 1)
    out = torch.empty(num_tokens, n, dtype=x.dtype, device=x.device)
    pointer = kernels.pointer
    kernels.call(
        "dlk_tile_linear",
        *[pointer(x), pointer(weight), pointer(bias), pointer(residual), pointer(out)],
        *[num_tokens, n, k, int(swiglu), tile.tokens, tile.rows],
        *[tile.boxes, tile.sharers, tile.splits, tile.stages],
    )
    return out

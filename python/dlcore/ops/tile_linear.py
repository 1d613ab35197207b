"""The CUDA kernel for products with tens to hundreds of tokens: struct dlk_tile, and the rule
that chooses its tile."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.norm_parts import NormParts
from dlcore.ops.weight_product import launch_product

KERNEL = "dlk_tile_linear"
MAX_TOKENS = 512
LONG, MIN_TO_SPLIT = 4096, 1024  # values of K
STEP = 64  # values of K in a stage of a block's ring
# Leaves a multiprocessor room for the next kernel's block, which requests its first weights
# before this one has ended: a deeper ring is faster alone, and slower in a chain of small layers.
RING_BYTES = 144 * 1024
# With many rows a block is alone and reads long: stages of 192 rows by tokens of the tile.
MANY_ROWS = 64 * kernels.MULTIPROCESSORS
DEEP_RING = {32: 5, 64: 7, 128: 5}
RING_BYTES_OF_TWO = 110 * 1024  # for two blocks on a multiprocessor
# Above, up to 256 tokens fill tiles of 64 and 128: those of small weights, of so many values.
FULL_TOKENS, SMALL_WEIGHT = 224, 6144 * 1024
# Stages of tiles of 192 rows by their tokens, and how much of the multiprocessors they must use.
ONE_ROUND_RINGS = {128: 5, 192: 4, 256: 4}
MIN_USE = 0.7
PIECE = 64  # outputs whose squares are summed


class _Tile(ctypes.Structure):
    """struct dlk_tile."""

    _fields_ = (
        ("tokens", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("splits", ctypes.c_int),
        ("stages", ctypes.c_int),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTile:
    """How `tile_linear` shares a product out among blocks."""

    tokens: int  # of a block's tile: 32, 64 or 128; with SwiGLU also 192 or 256
    rows: int  # of the weight: 64 or 192; with SwiGLU and 128 tokens also 128
    splits: int  # 1, 2, 4 or 8 blocks share K
    stages: int  # of a block's ring, 2 to 16

    @property
    def makes_stream(self) -> bool:
        """Whether it may add a residual, and make the parts of a norm after it."""
        return self.rows == PIECE

    @property
    def takes_norm(self) -> bool:
        """Whether it should have the parts of a norm: one warp adds up the squares, beside loads
        that fill the ring of a larger tile."""
        return self.tokens <= 128

    def as_argument(self) -> _Tile:
        return _Tile(self.tokens, self.rows, self.splits, self.stages)


@functools.cache
def linear_tile(num_tokens: int, rows: int, k: int, *, swiglu: bool = False) -> LinearTile | None:
    """The tile for a product with a weight [rows, k], or None where another kernel is faster.

    Measured within decode steps of 16 to 512 sequences on an H100.
    """
    if not 1 <= num_tokens <= MAX_TOKENS or rows % 16 or k % STEP or k < 4 * STEP:
        return None
    if num_tokens <= 128:
        return _few_tokens(num_tokens, rows, k)
    if FULL_TOKENS < num_tokens <= 256 and k < LONG and rows * k <= SMALL_WEIGHT:
        return _full_tokens(rows, k, swiglu=swiglu)
    return _one_round(num_tokens, rows, k) if swiglu else None


def _few_tokens(num_tokens: int, rows: int, k: int) -> LinearTile | None:
    tokens = 32 if num_tokens <= 32 else 64 if num_tokens <= 64 else 128
    if rows > MANY_ROWS:
        stages = min(DEEP_RING[tokens], k // STEP)
        return LinearTile(tokens=tokens, rows=192, splits=1, stages=stages)
    if tokens == 128 and k >= LONG:
        return None
    return _with_ring(tokens, 64, _splits(tokens, -(-rows // 64), k), k)


def _full_tokens(rows: int, k: int, *, swiglu: bool) -> LinearTile:
    """For close to 256 tokens and a small weight."""
    if swiglu:
        return _with_ring(128, 128, 1, k)
    blocks = 4 * -(-rows // 64)
    if blocks > kernels.MULTIPROCESSORS:  # two on a multiprocessor
        return _with_ring(64, 64, 1, k, RING_BYTES_OF_TWO)
    return _with_ring(64, 64, 2 if 2 * blocks <= kernels.MULTIPROCESSORS else 1, k)


def _one_round(num_tokens: int, rows: int, k: int) -> LinearTile | None:
    """Tiles as large as it takes for each to have a multiprocessor, if most then have one."""
    for tokens, stages in ONE_ROUND_RINGS.items():
        blocks = -(-num_tokens // tokens) * -(-rows // 192)
        if blocks <= kernels.MULTIPROCESSORS:
            enough = num_tokens * rows >= MIN_USE * kernels.MULTIPROCESSORS * tokens * 192
            tile = LinearTile(tokens=tokens, rows=192, splits=1, stages=min(stages, k // STEP))
            return tile if enough else None
    return None


def _with_ring(
    tokens: int, rows: int, splits: int, k: int, ring_bytes: int = RING_BYTES
) -> LinearTile:
    stages = min(ring_bytes // ((tokens + rows) * STEP * 2), k // STEP // splits)
    return LinearTile(tokens=tokens, rows=rows, splits=splits, stages=stages)


def _splits(tokens: int, blocks: int, k: int) -> int:
    """Of K: until half of the multiprocessors have a block, or all where a block reads much."""
    most = kernels.MULTIPROCESSORS if tokens == 128 or k >= LONG else kernels.MULTIPROCESSORS // 2
    splits = 1
    while splits < 8 and 2 * splits * blocks <= most and k // splits >= MIN_TO_SPLIT:
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
    residual: only if `tile.makes_stream`, and without swiglu.
    """
    return launch_product(
        KERNEL, x, weight, tile.as_argument(), bias=bias, residual=residual, swiglu=swiglu
    )


def tile_linear_of_norm(
    parts: NormParts,
    eps: float,
    weight: Tensor,
    tile: LinearTile,
    *,
    bias: Tensor | None = None,
    swiglu: bool = False,
) -> Tensor:
    """`tile_linear` of the RMSNorm of y: [T, N] = rms_norm(y) weight^T + bias."""
    return launch_product(
        KERNEL,
        parts.scaled,
        weight,
        tile.as_argument(),
        bias=bias,
        swiglu=swiglu,
        squares=parts.squares,
        eps=eps,
    )


def tile_linear_before_norm(
    x: Tensor,
    weight: Tensor,
    tile: LinearTile,
    norm_weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, NormParts]:
    """y = `tile_linear`: [T, N], and its parts for the RMSNorm of this weight [N].

    Only if `tile.makes_stream`.
    """
    parts = NormParts.empty(norm_weight, x, PIECE)
    out = launch_product(
        KERNEL, x, weight, tile.as_argument(), bias=bias, residual=residual, out_parts=parts
    )
    return out, parts

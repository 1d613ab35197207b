"""The CUDA kernel for products with some tens of tokens: struct dlk_tile, and the rule that
chooses its tile."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.norm_parts import NormParts

MAX_TOKENS = 128
LONG, MIN_TO_SPLIT = 4096, 1024  # values of K
STEP = 64  # values of K in a stage of a block's ring
# Leaves a multiprocessor room for the next kernel's block, which requests its first weights
# before this one has ended: a deeper ring is faster alone, and slower in a chain of small layers.
RING_BYTES = 144 * 1024
# With many rows a block is alone and reads long: stages of 192 rows by tokens of the tile.
MANY_ROWS = 64 * kernels.MULTIPROCESSORS
DEEP_RING = {32: 5, 64: 7, 128: 5}
PIECE = 64  # outputs whose squares are summed

_PTR, _INT = ctypes.c_void_p, ctypes.c_int


class _Tile(ctypes.Structure):
    """struct dlk_tile."""

    _fields_ = (
        ("x", _PTR),
        ("weight", _PTR),
        ("bias", _PTR),
        ("residual", _PTR),
        ("out", _PTR),
        ("squares", _PTR),
        ("eps", ctypes.c_float),
        ("norm_weight", _PTR),
        ("scaled", _PTR),
        ("out_squares", _PTR),
        ("num_tokens", _INT),
        ("n", _INT),
        ("k", _INT),
        ("num_pieces", _INT),
        ("swiglu", _INT),
        ("tokens", _INT),
        ("rows", _INT),
        ("splits", _INT),
        ("stages", _INT),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTile:
    """How `tile_linear` shares a product out among blocks."""

    tokens: int  # of a block's tile: 32, 64 or 128
    rows: int  # of the weight: 64 or 192
    splits: int  # 1, 2, 4 or 8 blocks share K
    stages: int  # of a block's ring, 2 to 16


@functools.cache
def linear_tile(num_tokens: int, rows: int, k: int) -> LinearTile | None:
    """The tile for a product with a weight [rows, k], or None where another kernel is faster.

    Measured within decode steps of 16 to 256 sequences on an H100.
    """
    if not 1 <= num_tokens <= MAX_TOKENS or rows % 16 or k % STEP or k < 4 * STEP:
        return None
    tokens = 32 if num_tokens <= 32 else 64 if num_tokens <= 64 else 128
    if rows > MANY_ROWS:
        stages = min(DEEP_RING[tokens], k // STEP)
        return LinearTile(tokens=tokens, rows=192, splits=1, stages=stages)
    if tokens == 128 and k >= LONG:
        return None
    splits = _splits(tokens, -(-rows // 64), k)
    stages = min(RING_BYTES // ((tokens + 64) * STEP * 2), k // STEP // splits)
    return LinearTile(tokens=tokens, rows=64, splits=splits, stages=stages)


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
    residual: only with tiles of 64 rows, and without swiglu.
    """
    return _launch(x, weight, tile, bias=bias, residual=residual, swiglu=swiglu)


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
    return _launch(
        parts.scaled, weight, tile, bias=bias, swiglu=swiglu, squares=parts.squares, eps=eps
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

    The tile's rows are 64.
    """
    parts = NormParts.empty(norm_weight, x, PIECE)
    return _launch(x, weight, tile, bias=bias, residual=residual, out_parts=parts), parts


def _launch(
    x: Tensor,
    weight: Tensor,
    tile: LinearTile,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
    squares: Tensor | None = None,
    eps: float = 0.0,
    out_parts: NormParts | None = None,
) -> Tensor:
    num_tokens, k = x.shape
    n = weight.shape[0] // (2 if swiglu else 1)
    out = torch.empty(num_tokens, n, dtype=x.dtype, device=x.device)
    pointer = kernels.pointer
    args = _Tile(
        x=pointer(x),
        weight=pointer(weight),
        bias=pointer(bias),
        residual=pointer(residual),
        out=pointer(out),
        squares=pointer(squares),
        eps=eps,
        num_tokens=num_tokens,
        n=n,
        k=k,
        num_pieces=0 if squares is None else squares.shape[0],
        swiglu=int(swiglu),
        tokens=tile.tokens,
        rows=tile.rows,
        splits=tile.splits,
        stages=tile.stages,
    )
    if out_parts is not None:
        args.norm_weight = pointer(out_parts.norm_weight)
        args.scaled = pointer(out_parts.scaled)
        args.out_squares = pointer(out_parts.squares)
    kernels.call("dlk_tile_linear", args)
    return out

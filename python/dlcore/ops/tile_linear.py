"""The CUDA kernel for products with tens to hundreds of tokens: struct dlk_tile, and the rule
that chooses its tile."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.weight_product import WeightProduct, empty_squares

KERNEL = "dlk_tile_linear"
MAX_TOKENS = 512
STEP = 64  # values of K in a stage of a block's ring
# Stages by tokens and rows of a tile: as deep as a chain of small layers takes gladly. Deeper is
# faster alone, but leaves a multiprocessor less room for the next kernel's first block.
RINGS = {(32, 64): 12, (64, 64): 13, (64, 128): 7, (64, 192): 5}
MIN_TO_SPLIT = 2048  # values of K that are shared, by up to 4 blocks
# Clusters of four reach no more multiprocessors: some must take two blocks, with rings as deep.
REACHED_BY_FOURS, RING_OF_TWO = 120, 6
# With many rows a block is alone and reads long: tiles of 192 rows, stages by tokens of the tile.
MANY_ROWS = 64 * kernels.MULTIPROCESSORS
DEEP_RING = {32: 5, 64: 7, 128: 5}
# Beyond these the library is faster: values of K with more than 64 tokens, and with more than 128;
# of a weight with more than 128.
LONGEST, LONG, SMALL_WEIGHT = 8192, 4096, 6144 * 1024
FULL_TOKENS = 112  # from here on 128 tokens' tiles are full enough for long K
RING_OF_HALF = 4  # stages of 64 tokens by 128 rows, of which a multiprocessor has room for two
# Stages of tiles of 192 rows by their tokens, and how much of the multiprocessors they must use.
ONE_ROUND_RINGS = {128: 5, 192: 4, 256: 4}
MIN_USE = 0.7
PIECE = 64  # outputs whose squares are summed
# Looks, some 0.7 us each, for what another block finds in a few microseconds. In vain for rows
# whose squares overflow: their scale is 0, as if nobody knew it yet.
NORM_PATIENCE = 100


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
    rows: int  # of the weight: 64 (up to 64 tokens), 128 (64 tokens) or 192
    splits: int  # 1, 2 or 4 blocks share K
    stages: int  # of a block's ring, 2 to 16

    @property
    def makes_stream(self) -> bool:
        """Whether it may add a residual, and sum squares for a norm after it."""
        return self.rows == PIECE

    @property
    def takes_norm(self) -> bool:
        """Whether it should norm x: one warp adds up the squares, beside loads that fill the ring
        of a larger tile."""
        return self.tokens <= 128

    @property
    def finds_norm(self) -> bool:
        """Whether its blocks should find the norm that nobody left squares for (`tile_swiglu`): no
        gain in tiles of 256 tokens at the power limit, or of 64 by 128 rows."""
        return self.tokens in (128, 192) and self.rows == 192

    def as_argument(self) -> _Tile:
        return _Tile(self.tokens, self.rows, self.splits, self.stages)


@functools.cache
def linear_tile(num_tokens: int, rows: int, k: int, *, swiglu: bool = False) -> LinearTile | None:
    """The tile for a product with a weight [rows, k], or None where another kernel is faster.

    Measured within decode steps of 16 to 512 sequences on an H100.
    """
    if not 1 <= num_tokens <= MAX_TOKENS or rows % 16 or k % STEP or k < 4 * STEP:
        return None
    if num_tokens > 256 or (num_tokens > 128 and (k >= LONG or rows * k > SMALL_WEIGHT)):
        if not swiglu:
            return None
        return _two_on_each(num_tokens, rows, k) or _one_round(num_tokens, rows, k)
    if rows > MANY_ROWS:
        tokens = 32 if num_tokens <= 32 else 64 if num_tokens <= 64 else 128
        return LinearTile(
            tokens=tokens, rows=192, splits=1, stages=min(DEEP_RING[tokens], k // STEP)
        )
    if num_tokens > 64 and (k > LONGEST or (k >= LONG and num_tokens < FULL_TOKENS)):
        return None
    return _smallest(num_tokens, rows, k)


def _smallest(num_tokens: int, rows: int, k: int) -> LinearTile | None:
    """The smallest of the tiles that each have a multiprocessor."""
    tokens = 32 if num_tokens <= 32 else 64
    for tile_rows in (64, 128, 192):
        blocks = -(-num_tokens // tokens) * -(-rows // tile_rows)
        if blocks <= kernels.MULTIPROCESSORS:
            splits = _splits(blocks, k)
            stages = min(RINGS[tokens, tile_rows], k // STEP // splits)
            if splits == 4 and splits * blocks > REACHED_BY_FOURS:
                stages = min(stages, RING_OF_TWO)
            return LinearTile(tokens=tokens, rows=tile_rows, splits=splits, stages=stages)
    return None


def _splits(blocks: int, k: int) -> int:
    """Of K: until all multiprocessors have a block."""
    splits = 1
    while k >= MIN_TO_SPLIT and splits < 4 and 2 * splits * blocks <= kernels.MULTIPROCESSORS:
        splits *= 2
    return splits


def _two_on_each(num_tokens: int, rows: int, k: int) -> LinearTile | None:
    """Small tiles of a small weight, two at once on nearly each multiprocessor."""
    places = 2 * kernels.MULTIPROCESSORS
    blocks = -(-num_tokens // 64) * -(-rows // 128)
    if rows * k > SMALL_WEIGHT or blocks > places or num_tokens * rows < 0.9 * places * 64 * 128:
        return None
    return LinearTile(tokens=64, rows=128, splits=1, stages=min(RING_OF_HALF, k // STEP))


def _one_round(num_tokens: int, rows: int, k: int) -> LinearTile | None:
    """Tiles as large as it takes for each to have a multiprocessor, if most then have one."""
    for tokens, stages in ONE_ROUND_RINGS.items():
        blocks = -(-num_tokens // tokens) * -(-rows // 192)
        if blocks <= kernels.MULTIPROCESSORS:
            enough = num_tokens * rows >= MIN_USE * kernels.MULTIPROCESSORS * tokens * 192
            tile = LinearTile(tokens=tokens, rows=192, splits=1, stages=min(stages, k // STEP))
            return tile if enough else None
    return None


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
    product = WeightProduct(x=x, weight=weight, bias=bias, residual=residual, swiglu=swiglu)
    return product.launch(KERNEL, tile.as_argument())


def tile_linear_of_norm(
    x: Tensor,
    squares: Tensor,
    eps: float,
    weight: Tensor,
    tile: LinearTile,
    *,
    bias: Tensor | None = None,
    swiglu: bool = False,
) -> Tensor:
    """`tile_linear` of x's RMSNorm: [T, N] = rms_norm(x) weight^T + bias. squares: x's."""
    product = WeightProduct(x=x, weight=weight, bias=bias, swiglu=swiglu, squares=squares, eps=eps)
    return product.launch(KERNEL, tile.as_argument())


def new_norm_space(device: torch.device) -> Tensor | None:
    """Where blocks of a `tile_swiglu` meet: one for all products of an engine, none where there is
    no such kernel. Zeroed; each launch leaves it so."""
    if not kernels.runs_on(device):
        return None
    return torch.zeros(kernels.size("dlk_norm_space_bytes"), dtype=torch.uint8, device=device)


def tile_swiglu(
    x: Tensor,
    eps: float,
    weight: Tensor,
    tile: LinearTile,
    space: Tensor,
    *,
    patience: int = NORM_PATIENCE,
) -> Tensor:
    """`tile_linear` with swiglu of x's RMSNorm, whose rows nobody has squared. T is up to 512.

    space: `new_norm_space`. patience: how often a block looks for 1 / rms of a row that another one
    finds before it finds it itself; the result is the same.
    """
    product = WeightProduct(
        x=x, weight=weight, swiglu=True, norm_space=space, norm_patience=patience, eps=eps
    )
    return product.launch(KERNEL, tile.as_argument())


def tile_linear_before_norm(
    x: Tensor,
    weight: Tensor,
    tile: LinearTile,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y = `tile_linear`: [T, N], and its squares for the RMSNorm after it.

    Only if `tile.makes_stream`.
    """
    squares = empty_squares(x.shape[0], weight.shape[0], PIECE, x.device)
    product = WeightProduct(x=x, weight=weight, bias=bias, residual=residual, out_squares=squares)
    return product.launch(KERNEL, tile.as_argument()), squares

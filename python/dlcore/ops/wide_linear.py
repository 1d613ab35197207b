"""The CUDA kernel for products with hundreds of tokens and more: struct dlk_wide."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.norm_parts import NormParts

MIN_TOKENS = 512
MIN_K = 1024
TILE = 256  # tokens, and rows of the weight, that two multiprocessors multiply at a time
TOKEN_TILES_TOGETHER = 8
MIN_USE = 0.9  # of the multiprocessors, over the rounds that the tiles take

_PTR, _INT = ctypes.c_void_p, ctypes.c_int


class _Wide(ctypes.Structure):
    """struct dlk_wide."""

    _fields_ = (
        ("x", _PTR),
        ("weight", _PTR),
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
        ("swiglu", _INT),
        ("group", _INT),
    )


def wide_linear_pays(num_tokens: int, weight: Tensor) -> bool:
    """Whether `wide_linear` takes this product and is no slower than the library on an H100."""
    rows, k = weight.shape
    if num_tokens < MIN_TOKENS or k < MIN_K or rows % 16 or k % 8:
        return False
    pairs = kernels.MULTIPROCESSORS // 2
    rounds = -(-_tiles(num_tokens) * _tiles(rows) // pairs)
    return num_tokens * rows >= MIN_USE * rounds * pairs * TILE * TILE


def _tiles(size: int) -> int:
    return -(-size // TILE)


def wide_linear(
    x: Tensor,
    weight: Tensor,
    *,
    residual: Tensor | None = None,
    swiglu: bool = False,
    group: int = TOKEN_TILES_TOGETHER,
) -> Tensor:
    """x: [T, K], weight: [N, K] -> [T, N] = x weight^T + residual; float32 sums, rounded once.

    swiglu: weight is [2N, K], gates then ups, and the result silu(gate) * up: [T, N].
    group: tiles of 256 tokens that go through the weight together, to meet in L2.
    N and K are multiples of 8.
    """
    return _launch(x, weight, residual=residual, swiglu=swiglu, group=group)


def wide_linear_of_norm(
    parts: NormParts, eps: float, weight: Tensor, *, swiglu: bool = False
) -> Tensor:
    """`wide_linear` of the RMSNorm of y: [T, N] = rms_norm(y) weight^T."""
    return _launch(parts.scaled, weight, swiglu=swiglu, squares=parts.squares, eps=eps)


def wide_linear_before_norm(
    x: Tensor, weight: Tensor, residual: Tensor, norm_weight: Tensor
) -> tuple[Tensor, NormParts]:
    """y = x weight^T + residual: [T, N], and its parts for the RMSNorm of this weight [N]."""
    parts = NormParts.empty(norm_weight, x, TILE)
    return _launch(x, weight, residual=residual, out_parts=parts), parts


def _launch(
    x: Tensor,
    weight: Tensor,
    *,
    residual: Tensor | None = None,
    swiglu: bool = False,
    group: int = TOKEN_TILES_TOGETHER,
    squares: Tensor | None = None,
    eps: float = 0.0,
    out_parts: NormParts | None = None,
) -> Tensor:
    num_tokens, k = x.shape
    n = weight.shape[0] // (2 if swiglu else 1)
    out = torch.empty(num_tokens, n, dtype=x.dtype, device=x.device)
    pointer = kernels.pointer
    args = _Wide(
        x=pointer(x),
        weight=pointer(weight),
        residual=pointer(residual),
        out=pointer(out),
        squares=pointer(squares),
        eps=eps,
        num_tokens=num_tokens,
        n=n,
        k=k,
        swiglu=int(swiglu),
        group=group,
    )
    if out_parts is not None:
        args.norm_weight = pointer(out_parts.norm_weight)
        args.scaled = pointer(out_parts.scaled)
        args.out_squares = pointer(out_parts.squares)
    kernels.call("dlk_wide_linear", args)
    return out

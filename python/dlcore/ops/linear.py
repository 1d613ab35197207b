"""Matrix products with weights, alone and fused with what surrounds them in a decoder layer.

For few tokens a product's time is that of reading its weight: one kernel then does all of a
function here, in a small model for some more tokens too. For some tens, and for many, RMSNorm is
part of the products before and after it. Where none of these pays, the product is a library's, and
its norm is left to the kernel after it.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from dlcore.ops import kernels
from dlcore.ops.activation import silu_and_mul
from dlcore.ops.norm import rms_norm
from dlcore.ops.residual_stream import PendingNorm, ResidualStream
from dlcore.ops.tile_linear import (
    LinearTile,
    linear_tile,
    tile_linear,
    tile_linear_before_norm,
    tile_linear_of_norm,
    tile_swiglu,
)
from dlcore.ops.wide_linear import (
    wide_linear,
    wide_linear_before_norm,
    wide_linear_of_norm,
    wide_linear_pays,
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x: [T, in], weight: [out, in], bias: [out] -> [T, out]."""
    if _is_skinny(x, weight):
        return kernels.skinny_linear(x, weight, bias=bias)
    if _is_wide(x, weight, bias):
        return wide_linear(x, weight)
    tile = _tile(x, weight)
    if tile is not None:
        return tile_linear(x, weight, tile, bias=bias)
    return functional.linear(x, weight, bias)


def norm_linear(
    stream: ResidualStream,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    may_leave_norm: bool = False,
) -> tuple[Tensor, PendingNorm | None]:
    """rms_norm(stream) W^T + b: [T, out], and what is pending of it: nothing unless the reader may
    be left the norm."""
    x, squares = stream.x, stream.squares
    if _is_skinny_norm(stream, weight):
        return kernels.skinny_linear(x, weight, norm_eps=eps, bias=bias), None
    if squares is not None and _is_wide(x, weight, bias):
        return wide_linear_of_norm(x, squares, eps, weight), None
    tile = _tile(x, weight)
    if squares is not None and tile is not None:
        return tile_linear_of_norm(x, squares, eps, weight, tile, bias=bias), None
    if may_leave_norm and bias is None and kernels.usable(x, weight):
        return linear(x, weight), PendingNorm(x, eps)
    return linear(rms_norm(x, None, eps), weight, bias), None


def norm_swiglu(
    stream: ResidualStream, eps: float, weight: Tensor, space: Tensor | None = None
) -> Tensor:
    """silu(gate) * up: [T, I], where (gate, up) = rms_norm(stream) W^T.

    weight: [2I, D], the rows of gate, then those of up. space: tile_linear.new_norm_space of
    the engine; without it some norms are a kernel of their own.
    """
    x, squares = stream.x, stream.squares
    if _is_skinny_norm(stream, weight):
        return kernels.skinny_linear(x, weight, norm_eps=eps, swiglu=True)
    if _is_wide(x, weight, swiglu=True):
        if squares is not None:
            return wide_linear_of_norm(x, squares, eps, weight, swiglu=True)
        return wide_linear(rms_norm(x, None, eps), weight, swiglu=True)
    tile = _tile(x, weight, swiglu=True)
    if tile is not None:
        if squares is not None and tile.takes_norm:
            return tile_linear_of_norm(x, squares, eps, weight, tile, swiglu=True)
        if space is not None and tile.finds_norm:
            return tile_swiglu(x, eps, weight, tile, space)
        return tile_linear(rms_norm(x, None, eps), weight, tile, swiglu=True)
    if kernels.usable(x, weight):
        return silu_and_mul(linear(x, weight), PendingNorm(x, eps))
    return silu_and_mul(linear(rms_norm(x, None, eps), weight))


def residual_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor
) -> ResidualStream:
    """The stream residual + x W^T + b. x: [T, in], residual: [T, out], which may become the stream:
    nothing else may read it from here on."""
    if _is_skinny_addition(x, weight):
        return ResidualStream(kernels.skinny_linear(x, weight, bias=bias, residual=residual))
    if _is_wide(x, weight, bias):
        return ResidualStream(*wide_linear_before_norm(x, weight, residual))
    tile = _tile(x, weight)
    if tile is not None and tile.makes_stream:
        return ResidualStream(
            *tile_linear_before_norm(x, weight, tile, bias=bias, residual=residual)
        )
    if bias is None and kernels.usable(x, weight, residual):  # the library adds on its way out
        return ResidualStream(residual.addmm_(x, weight.t()))
    return ResidualStream(functional.linear(x, weight, bias) + residual)


def _is_skinny(x: Tensor, weight: Tensor) -> bool:
    return kernels.usable(x, weight) and kernels.skinny_linear_pays(x.shape[0], weight)


def _is_skinny_addition(x: Tensor, weight: Tensor) -> bool:
    num_tokens = x.shape[0]
    return kernels.usable(x, weight) and (
        kernels.skinny_linear_pays(num_tokens, weight)
        or kernels.skinny_linear_adds(num_tokens, weight)
    )


def _is_skinny_norm(stream: ResidualStream, weight: Tensor) -> bool:
    num_tokens = stream.x.shape[0]
    return kernels.usable(stream.x, weight) and (
        kernels.skinny_linear_pays(num_tokens, weight)
        or (stream.squares is None and kernels.skinny_linear_norms(num_tokens, weight))
    )


def _is_wide(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, swiglu: bool = False
) -> bool:
    fits = bias is None and kernels.usable(x, weight)
    return fits and wide_linear_pays(x.shape[0], weight, swiglu=swiglu)


def _tile(x: Tensor, weight: Tensor, *, swiglu: bool = False) -> LinearTile | None:
    if not kernels.usable(x, weight):
        return None
    return linear_tile(x.shape[0], *weight.shape, swiglu=swiglu)

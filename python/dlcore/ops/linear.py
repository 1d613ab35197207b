"""Matrix products with weights, alone and fused with what surrounds them in a decoder layer.

For few tokens a product's time is that of reading its weight: one kernel then does all of a
function here, in a small model for some more tokens too. For some tens, and for many, RMSNorm is
part of the products before and after it. Where none of these pays, the product is a library's and
the rest are kernels of their own.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from dlcore.ops import kernels
from dlcore.ops.activation import silu_and_mul
from dlcore.ops.norm import fused_add_rms_norm, rms_norm
from dlcore.ops.norm_parts import NormParts
from dlcore.ops.residual_stream import ResidualStream
from dlcore.ops.tile_linear import (
    LinearTile,
    linear_tile,
    tile_linear,
    tile_linear_before_norm,
    tile_linear_of_norm,
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
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(rms_norm(stream) W^T + b: [T, out], the stream: [T, D])."""
    x = stream.x
    if _is_skinny_norm(stream, weight):
        return kernels.skinny_linear(x, weight, norm_weight=norm_weight, eps=eps, bias=bias), x
    parts = _parts_for(stream, norm_weight)
    if parts is not None and _is_wide(x, weight, bias):
        return wide_linear_of_norm(parts, eps, weight), x
    tile = _tile(x, weight)
    if parts is not None and tile is not None:
        return tile_linear_of_norm(parts, eps, weight, tile, bias=bias), x
    normed, total = _norm(stream, norm_weight, eps)
    return linear(normed, weight, bias), total


def norm_swiglu(
    stream: ResidualStream, norm_weight: Tensor, eps: float, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """(silu(gate) * up: [T, I], the stream: [T, D]), where (gate, up) = rms_norm(stream) W^T.

    weight: [2I, D], the rows of gate, then those of up.
    """
    x = stream.x
    if _is_skinny_norm(stream, weight):
        return kernels.skinny_linear(x, weight, norm_weight=norm_weight, eps=eps, swiglu=True), x
    parts = _parts_for(stream, norm_weight)
    if parts is not None and _is_wide(x, weight):
        return wide_linear_of_norm(parts, eps, weight, swiglu=True), x
    tile = _tile(x, weight, swiglu=True)
    if parts is not None and tile is not None and tile.takes_norm:
        return tile_linear_of_norm(parts, eps, weight, tile, swiglu=True), x
    normed, total = _norm(stream, norm_weight, eps)
    if _is_wide(normed, weight):
        return wide_linear(normed, weight, swiglu=True), total
    if tile is not None:
        return tile_linear(normed, weight, tile, swiglu=True), total
    return silu_and_mul(linear(normed, weight)), total


def residual_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, next_norm_weight: Tensor
) -> ResidualStream:
    """The stream residual + x W^T + b. x: [T, in], residual: [T, out], which may become the stream:
    nothing else may read it from here on.

    next_norm_weight: [out], of the RMSNorm that will read the stream.
    """
    if _is_skinny_addition(x, weight):
        return ResidualStream(kernels.skinny_linear(x, weight, bias=bias, residual=residual))
    if _is_wide(x, weight, bias):
        out, parts = wide_linear_before_norm(x, weight, residual, next_norm_weight)
        return ResidualStream(out, norm_parts=parts)
    tile = _tile(x, weight)
    if tile is not None and tile.makes_stream:
        out, parts = tile_linear_before_norm(
            x, weight, tile, next_norm_weight, bias=bias, residual=residual
        )
        return ResidualStream(out, norm_parts=parts)
    if bias is None and kernels.usable(x, weight, residual):
        # The library adds on its way out, so that the norm reads one tensor and writes one.
        return ResidualStream(residual.addmm_(x, weight.t()))
    return ResidualStream(functional.linear(x, weight, bias), residual)


def _is_skinny(x: Tensor, weight: Tensor) -> bool:
    return kernels.usable(x, weight) and kernels.skinny_linear_pays(x.shape[0], weight)


def _is_skinny_addition(x: Tensor, weight: Tensor) -> bool:
    num_tokens = x.shape[0]
    return kernels.usable(x, weight) and (
        kernels.skinny_linear_pays(num_tokens, weight)
        or kernels.skinny_linear_adds(num_tokens, weight)
    )


def _is_skinny_norm(stream: ResidualStream, weight: Tensor) -> bool:
    if stream.residual is not None or not kernels.usable(stream.x, weight):
        return False
    num_tokens = stream.x.shape[0]
    has_parts = stream.norm_parts is not None
    return kernels.skinny_linear_pays(num_tokens, weight) or (
        not has_parts and kernels.skinny_linear_norms(num_tokens, weight)
    )


def _is_wide(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return bias is None and kernels.usable(x, weight) and wide_linear_pays(x.shape[0], weight)


def _tile(x: Tensor, weight: Tensor, *, swiglu: bool = False) -> LinearTile | None:
    if not kernels.usable(x, weight):
        return None
    return linear_tile(x.shape[0], *weight.shape, swiglu=swiglu)


def _parts_for(stream: ResidualStream, norm_weight: Tensor) -> NormParts | None:
    parts = stream.norm_parts
    return parts if parts is not None and parts.norm_weight is norm_weight else None


def _norm(stream: ResidualStream, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if stream.residual is None:
        return rms_norm(stream.x, weight, eps), stream.x
    return fused_add_rms_norm(stream.x, stream.residual, weight, eps)

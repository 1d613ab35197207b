"""Matrix products with weights, alone and fused with what surrounds them in a decoder layer.

For few tokens a product's time is that of reading its weight: one kernel then does all of a
function here. For many, the product is a library's and the rest are kernels of their own.

The residual stream is a pair (x, residual) whose sum it is; residual None stands for zero.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from dlcore.ops import kernels
from dlcore.ops.activation import silu_and_mul
from dlcore.ops.norm import fused_add_rms_norm, rms_norm
from dlcore.ops.wide_linear import wide_linear, wide_linear_pays


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x: [T, in], weight: [out, in], bias: [out] -> [T, out]."""
    if _is_skinny(x, weight):
        return kernels.skinny_linear(x, weight, bias=bias)
    if _is_wide(x, weight, bias):
        return wide_linear(x, weight)
    return functional.linear(x, weight, bias)


def norm_linear(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x, residual: [T, D] -> (rms_norm(x + residual) W^T + b: [T, out], x + residual)."""
    if residual is None and _is_skinny(x, weight):
        return kernels.skinny_linear(x, weight, norm_weight=norm_weight, eps=eps, bias=bias), x
    normed, stream = _norm(x, residual, norm_weight, eps)
    return linear(normed, weight, bias), stream


def norm_swiglu(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """(silu(gate) * up: [T, I], x + residual), where (gate, up) = rms_norm(x + residual) W^T.

    x, residual: [T, D]; weight: [2I, D], the rows of gate, then those of up.
    """
    if residual is None and _is_skinny(x, weight):
        return kernels.skinny_linear(x, weight, norm_weight=norm_weight, eps=eps, swiglu=True), x
    normed, stream = _norm(x, residual, norm_weight, eps)
    if _is_wide(normed, weight):
        return wide_linear(normed, weight, swiglu=True), stream
    return silu_and_mul(linear(normed, weight)), stream


def residual_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, stream: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The stream stream + x W^T + b as a pair. x: [T, in], stream: [T, out]."""
    if _is_skinny(x, weight):
        return kernels.skinny_linear(x, weight, bias=bias, residual=stream), None
    if _is_wide(x, weight, bias):
        return wide_linear(x, weight, residual=stream), None
    return functional.linear(x, weight, bias), stream


def _is_skinny(x: Tensor, weight: Tensor) -> bool:
    return kernels.usable(x, weight) and kernels.skinny_linear_pays(x.shape[0], weight)


def _is_wide(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return bias is None and kernels.usable(x, weight) and wide_linear_pays(x.shape[0], weight)


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if residual is None:
        return rms_norm(x, weight, eps), x
    return fused_add_rms_norm(x, residual, weight, eps)

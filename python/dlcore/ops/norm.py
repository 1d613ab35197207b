"""RMSNorm, alone and fused with the residual addition before it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dlcore.ops import kernels


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [..., D] -> x / rms(x) * weight, same shape and dtype; accumulates in float32.

    weight: [D], or any shape that broadcasts to x's.
    """
    if kernels.usable(x, weight) and weight.dim() == 1 and x.is_contiguous():
        return kernels.rms_norm(x, weight, eps)
    if x.dtype == torch.float32:
        return functional.rms_norm(x, (x.shape[-1],), None, eps) * weight
    normed = functional.rms_norm(x.float(), (x.shape[-1],), None, eps)
    return normed.to(x.dtype) * weight


def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x, residual: [T, D] -> (rms_norm(x + residual), x + residual)."""
    if kernels.usable(x, residual, weight):
        return kernels.fused_add_rms_norm(x, residual, weight, eps)
    residual = x + residual
    return rms_norm(residual, weight, eps), residual

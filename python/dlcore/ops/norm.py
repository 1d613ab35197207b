"""RMSNorm."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from dlcore.ops import kernels


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x: [..., D] -> x / rms(x) * weight, same shape and dtype; accumulates in float32.

    weight: [D], or any shape that broadcasts to x's; None: ones.
    """
    if kernels.usable(x) and (weight is None or weight.dim() == 1) and x.is_contiguous():
        return kernels.rms_norm(x, weight, eps)
    normed = functional.rms_norm(x.float(), (x.shape[-1],), None, eps).to(x.dtype)
    return normed if weight is None else normed * weight

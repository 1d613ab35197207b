"""Matrix products with weights."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x: [T, in], weight: [out, in], bias: [out] -> [T, out]."""
    return functional.linear(x, weight, bias)

"""E4M3: 8-bit floats with 3 bits of mantissa, to 448. A stored value times its scale is the value.

Source: "FP8 Formats for Deep Learning" (arXiv 2209.05433).
"""

from __future__ import annotations

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0


def scales_for(bounds: Tensor) -> Tensor:
    """The smallest powers of two, float32, with which nothing up to `bounds` (> 0) saturates."""
    return torch.exp2(torch.ceil(torch.log2(bounds.double() / E4M3_MAX))).float()


def quantize(values: Tensor, scales: Tensor) -> Tensor:
    """values / scales (broadcast) as E4M3, to nearest even; what is beyond its range saturates."""
    return (values.float() / scales).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def dequantize(stored: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """E4M3 `stored` times scales (broadcast)."""
    return (stored.float() * scales).to(dtype)

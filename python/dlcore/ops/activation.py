"""SwiGLU's activation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from dlcore.ops import kernels


def silu_and_mul(x: Tensor) -> Tensor:
    """x: [T, 2I] holding (gate, up) -> silu(gate) * up: [T, I]."""
    if kernels.usable(x):
        return kernels.silu_and_mul(x)
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up

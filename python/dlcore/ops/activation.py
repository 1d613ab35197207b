"""SwiGLU's activation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from dlcore.ops import kernels
from dlcore.ops.residual_stream import PendingNorm


def silu_and_mul(x: Tensor, pending: PendingNorm | None = None) -> Tensor:
    """x: [T, 2I] holding (gate, up) -> silu(gate) * up: [T, I]. pending: of x."""
    if kernels.usable(x):
        return kernels.silu_and_mul(x, pending)
    if pending is not None:
        x = pending.apply(x)
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up

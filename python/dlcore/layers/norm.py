"""RMSNorm with the residual stream's addition folded in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlcore.ops.norm import fused_add_rms_norm, rms_norm


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim), requires_grad=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: [T, D] -> (normed, residual stream). The stream starts as x itself."""
        if residual is None:
            return rms_norm(x, self.weight, self.eps), x
        return fused_add_rms_norm(x, residual, self.weight, self.eps)

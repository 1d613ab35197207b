"""RMSNorm, alone and folded into the product after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlcore.layers.linear import Linear
from dlcore.ops.norm import rms_norm


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def fold_into(self, linear: Linear) -> None:
        """Leaves the weight to the product after: (x / rms(x) * w) W^T = x / rms(x) (W * w)^T.

        A second time changes nothing."""
        linear.weight.mul_(self.weight)
        self.weight.fill_(1)

"""Linear layers whose weights may be several checkpoint tensors stacked by rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlcore.ops.linear import linear


class Linear(nn.Module):
    """y = x W^T (+ b). `weight`: [out_features, in_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

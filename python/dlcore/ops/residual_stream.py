"""The residual stream of a decoder, between the product that ends one half of a layer and the
RMSNorm that begins the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ResidualStream:
    """x, and what the RMSNorm after it would else compute."""

    x: Tensor  # [T, D]
    # Of x, where its product summed them: [pieces of D, T] float32.
    squares: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PendingNorm:
    """Of a product of the stream itself, where one of its RMSNorm was wanted: whoever reads the
    product multiplies its rows by 1 / rms of the stream's, without a pass of its own."""

    stream: Tensor  # [T, D]
    eps: float

    def apply(self, product: Tensor) -> Tensor:
        """product: [T, N] -> as it would be of rms_norm(stream)."""
        mean = self.stream.float().square().mean(dim=-1, keepdim=True)
        return (product.float() * torch.rsqrt(mean + self.eps)).to(product.dtype)

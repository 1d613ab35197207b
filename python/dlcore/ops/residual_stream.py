"""The residual stream of a decoder, between the product that ends one half of a layer and the
RMSNorm that begins the next."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlcore.ops.norm_parts import NormParts


@dataclass(frozen=True, slots=True)
class ResidualStream:
    """x + residual, [T, D] each; the addition is left to the norm that comes next."""

    x: Tensor
    residual: Tensor | None = None  # None stands for zero
    norm_parts: NormParts | None = None  # of x, where its product made them; then no residual

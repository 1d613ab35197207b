"""RMSNorm between two products, without a pass of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class NormParts:
    """What RMSNorm needs of y [T, D], as the product that made y left it.

    The product after the norm multiplies `scaled`, and then each token by 1 / rms.
    """

    norm_weight: Tensor  # [D]
    scaled: Tensor  # [T, D]: y * norm_weight
    squares: Tensor  # [pieces of D, T] float32: of y, summed by pieces of the kernel's size

"""RMSNorm between two products, without a pass of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class NormParts:
    """What RMSNorm needs of y [T, D], as the product that made y left it.

    The product after the norm multiplies `scaled`, and then each token by 1 / rms.
    """

    norm_weight: Tensor  # [D]
    scaled: Tensor  # [T, D]: y * norm_weight
    squares: Tensor  # [pieces of D, T] float32: of y, summed by pieces of the kernel's size

    @classmethod
    def empty(cls, norm_weight: Tensor, like: Tensor, piece: int) -> NormParts:
        """To be filled by a product of [T, D], with the tokens, type and device of `like`."""
        num_tokens, size = like.shape[0], norm_weight.shape[0]
        return cls(
            norm_weight=norm_weight,
            scaled=torch.empty(num_tokens, size, dtype=like.dtype, device=like.device),
            squares=torch.empty(
                -(-size // piece), num_tokens, dtype=torch.float32, device=like.device
            ),
        )

"""What the kernels for x weight^T of more than a few tokens take: struct dlk_product."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from dlcore.ops import kernels

_PTR, _INT = ctypes.c_void_p, ctypes.c_int


class _Product(ctypes.Structure):
    """struct dlk_product."""

    _fields_ = (
        ("x", _PTR),
        ("weight", _PTR),
        ("bias", _PTR),
        ("residual", _PTR),
        ("out", _PTR),
        ("squares", _PTR),
        ("eps", ctypes.c_float),
        ("out_squares", _PTR),
        ("num_tokens", _INT),
        ("n", _INT),
        ("k", _INT),
        ("num_pieces", _INT),
        ("swiglu", _INT),
        ("norm_space", _PTR),
        ("norm_patience", _INT),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightProduct:
    """x weight^T + bias + residual: [T, N]; with swiglu silu(gate) * up of the product."""

    x: Tensor  # [T, K]
    weight: Tensor  # [N, K]; with swiglu [2N, K], gates then ups
    bias: Tensor | None = None
    residual: Tensor | None = None
    swiglu: bool = False
    squares: Tensor | None = None  # x is RMS-normalised first, whose rows' squares these are
    norm_space: Tensor | None = None  # the same without squares; ops.tile_linear.new_norm_space
    norm_patience: int = 0
    eps: float = 0.0
    out_squares: Tensor | None = None  # filled with those of the result, see `empty_squares`

    @property
    def num_outputs(self) -> int:
        """N"""
        return self.weight.shape[0] // (2 if self.swiglu else 1)

    def launch(self, kernel: str, share: ctypes.Structure | int) -> Tensor:
        """share: how the kernel shares the product out, its second argument."""
        x = self.x
        out = torch.empty(x.shape[0], self.num_outputs, dtype=x.dtype, device=x.device)
        kernels.call(kernel, self.as_argument(out), share)
        return out

    def as_argument(self, out: Tensor) -> _Product:
        pointer = kernels.pointer
        num_tokens, k = self.x.shape
        return _Product(
            x=pointer(self.x),
            weight=pointer(self.weight),
            bias=pointer(self.bias),
            residual=pointer(self.residual),
            out=pointer(out),
            squares=pointer(self.squares),
            eps=self.eps,
            out_squares=pointer(self.out_squares),
            num_tokens=num_tokens,
            n=self.num_outputs,
            k=k,
            num_pieces=0 if self.squares is None else self.squares.shape[0],
            swiglu=int(self.swiglu),
            norm_space=pointer(self.norm_space),
            norm_patience=self.norm_patience,
        )


def empty_squares(num_tokens: int, size: int, piece: int, device: torch.device) -> Tensor:
    """To be filled with the squares of a result [T, size], summed by pieces of the kernel's."""
    return torch.empty(-(-size // piece), num_tokens, dtype=torch.float32, device=device)

"""What the kernels for x weight^T of more than a few tokens take: struct dlk_product."""

from __future__ import annotations

import ctypes

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
    )


def launch_product(
    kernel: str,
    x: Tensor,
    weight: Tensor,
    share: ctypes.Structure | int,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
    squares: Tensor | None = None,
    eps: float = 0.0,
    out_squares: Tensor | None = None,
) -> Tensor:
    """x: [T, K], weight: [N, K] ([2N, K] with swiglu) -> [T, N], by one kernel.

    share: how the kernel shares the product out, its second argument.
    squares, eps: x is RMS-normalised first, whose rows' squares these are (`ResidualStream`).
    out_squares: filled with those of the result.
    """
    out = torch.empty(
        x.shape[0], weight.shape[0] // (2 if swiglu else 1), dtype=x.dtype, device=x.device
    )
    args = product_argument(
        x,
        weight,
        out,
        bias=bias,
        residual=residual,
        swiglu=swiglu,
        squares=squares,
        eps=eps,
        out_squares=out_squares,
    )
    kernels.call(kernel, args, share)
    return out


def product_argument(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
    squares: Tensor | None = None,
    eps: float = 0.0,
    out_squares: Tensor | None = None,
) -> _Product:
    """See `launch_product`."""
    num_tokens, k = x.shape
    pointer = kernels.pointer
    return _Product(
        x=pointer(x),
        weight=pointer(weight),
        bias=pointer(bias),
        residual=pointer(residual),
        out=pointer(out),
        squares=pointer(squares),
        eps=eps,
        out_squares=pointer(out_squares),
        num_tokens=num_tokens,
        n=weight.shape[0] // (2 if swiglu else 1),
        k=k,
        num_pieces=0 if squares is None else squares.shape[0],
        swiglu=int(swiglu),
    )


def empty_squares(num_tokens: int, size: int, piece: int, device: torch.device) -> Tensor:
    """For `launch_product` to fill: of a result [T, size], summed by pieces of the kernel's."""
    return torch.empty(-(-size // piece), num_tokens, dtype=torch.float32, device=device)

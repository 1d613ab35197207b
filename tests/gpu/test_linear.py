"""The products of a layer against float32, by whichever kernel takes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dlcore.ops.linear import norm_linear, residual_linear
from tests.gpu.paged_case import needs_kernels, relative_error

pytestmark = needs_kernels

ROUNDING = 3e-3  # of one bf16 result
EPS = 1e-6


def _random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


@pytest.mark.parametrize("num_tokens", [1, 8, 40, 100, 160, 256, 400, 513, 1024])
@pytest.mark.parametrize(("n", "k"), [(1024, 3072), (4096, 4096), (2560, 9728)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_residual_linear_and_the_norm_after_it(
    num_tokens: int, n: int, k: int, with_bias: bool
) -> None:
    x, weight, residual = _random(num_tokens, k), _random(n, k, scale=0.05), _random(num_tokens, n)
    norm_weight, after = _random(n), _random(1024, n, scale=0.05)
    bias = _random(n) if with_bias else None
    total = x.float() @ weight.float().T + residual + (0 if bias is None else bias)
    stream = residual_linear(x, weight, bias, residual, norm_weight)
    out, summed = norm_linear(stream, norm_weight, EPS, after)
    assert relative_error(summed, total) < 2 * ROUNDING
    normed = functional.rms_norm(summed.float(), (n,), norm_weight.float(), EPS)
    assert relative_error(out, normed @ after.float().T) < 2 * ROUNDING

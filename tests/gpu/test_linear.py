"""The products of a layer against float32, by whichever kernel takes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dlcore.ops.linear import norm_linear, norm_swiglu, residual_linear
from dlcore.ops.residual_stream import ResidualStream
from dlcore.ops.tile_linear import new_norm_space
from tests.gpu.paged_case import needs_kernels, random_rows, relative_error
from tools.kernel_timing import captured

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
    x, weight = random_rows(num_tokens, k), _random(n, k, scale=0.05)
    residual = random_rows(num_tokens, n)
    after = _random(1024, n, scale=0.05)
    bias = _random(n) if with_bias else None
    total = x.float() @ weight.float().T + residual + (0 if bias is None else bias)
    stream = residual_linear(x, weight, bias, residual)
    assert relative_error(stream.x, total) < 2 * ROUNDING
    expected = functional.rms_norm(stream.x.float(), (n,), None, EPS) @ after.float().T
    gate, up = expected.chunk(2, dim=-1)
    assert (
        relative_error(norm_swiglu(stream, EPS, after), functional.silu(gate) * up) < 2 * ROUNDING
    )
    for may_leave_norm in (False, True):
        out, pending = norm_linear(stream, EPS, after, may_leave_norm=may_leave_norm)
        assert may_leave_norm or pending is None
        out = out if pending is None else pending.apply(out)
        assert relative_error(out, expected) < 2 * ROUNDING


@pytest.mark.parametrize("num_tokens", [70, 128, 160, 256, 300, 700])
@pytest.mark.parametrize(("inner", "k"), [(12288, 4096), (3072, 1024)])
def test_swiglu_of_a_stream_that_a_library_left(num_tokens: int, inner: int, k: int) -> None:
    """In a graph, replay after replay: what runs beside a product reads this replay's stream."""
    weight, down = _random(2 * inner, k, scale=0.02), _random(k, 256)
    space = new_norm_space(weight.device)
    x, residual = random_rows(num_tokens, 256), torch.zeros(num_tokens, k, device="cuda").bfloat16()

    def step() -> tuple[Tensor, Tensor]:
        stream = ResidualStream(residual.addmm_(x, down.t(), beta=0))
        return stream.x, norm_swiglu(stream, EPS, weight, space)

    graph, (y, out) = captured(step)
    for _ in range(3):
        x.copy_(random_rows(num_tokens, 256))
        graph.replay()
        normed = functional.rms_norm(y.float(), (k,), None, EPS)
        gate, up = (normed @ weight.float().T).chunk(2, dim=-1)
        assert relative_error(out, functional.silu(gate) * up) < 2 * ROUNDING

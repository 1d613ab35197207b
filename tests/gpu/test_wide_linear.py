"""Products for hundreds of tokens and more against float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dlcore.ops.wide_linear import wide_linear, wide_linear_before_norm, wide_linear_of_norm
from tests.gpu.paged_case import needs_kernels, random_rows, relative_error
from tools.kernel_timing import captured

pytestmark = needs_kernels

ROUNDING = 3e-3  # of one bf16 result
EPS = 1e-6


def _random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


@pytest.mark.parametrize("num_tokens", [1, 512, 1000, 2049, 4100])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (1000, 1032), (24, 64), (5120, 8)])
@pytest.mark.parametrize("group", [1, 3, 8])
def test_wide_linear(num_tokens: int, n: int, k: int, group: int) -> None:
    x, weight = _random(num_tokens, k, scale=2), _random(n, k, scale=0.05)
    plain, residual = x.float() @ weight.float().T, _random(num_tokens, n)
    assert relative_error(wide_linear(x, weight, group=group), plain) < ROUNDING
    out = wide_linear(x, weight, residual=residual, group=group)
    assert relative_error(out, plain + residual) < ROUNDING


# Tiles of 128 tokens and of 192: with 3072 outputs the latter for 1400 tokens and for 4100.
@pytest.mark.parametrize("num_tokens", [1, 448, 513, 1400, 4100])
@pytest.mark.parametrize(("inner", "k"), [(3072, 1024), (3000, 64), (1000, 1032), (8, 4096)])
@pytest.mark.parametrize("group", [1, 8])
def test_wide_swiglu(num_tokens: int, inner: int, k: int, group: int) -> None:
    x, weight = _random(num_tokens, k), _random(2 * inner, k, scale=0.05)
    gate, up = (x.float() @ weight.float().T).chunk(2, dim=-1)
    out = wide_linear(x, weight, swiglu=True, group=group)
    assert relative_error(out, functional.silu(gate) * up) < ROUNDING


@pytest.mark.parametrize("num_tokens", [1, 513, 4100])
@pytest.mark.parametrize("dim", [8, 1000, 4096, 5120])
@pytest.mark.parametrize("swiglu", [False, True])
def test_rms_norm_between_two_products(num_tokens: int, dim: int, swiglu: bool) -> None:
    x, weight = random_rows(num_tokens, 520), _random(dim, 520)
    residual = random_rows(num_tokens, dim)
    after = _random(2 * 1032, dim, scale=0.05)
    y, squares = wide_linear_before_norm(x, weight, residual)
    assert torch.equal(y, wide_linear(x, weight, residual=residual))
    assert relative_error(squares.sum(0), y.float().square().sum(1)) < 1e-5
    normed = functional.rms_norm(y.float(), (dim,), None, EPS)
    expected = normed @ after.float().T
    if swiglu:
        gate, up = expected.chunk(2, dim=-1)
        expected = functional.silu(gate) * up
    out = wide_linear_of_norm(y, squares, EPS, after, swiglu=swiglu)
    assert relative_error(out, expected) < 2 * ROUNDING


def test_tokens_and_weights_that_are_parts_of_larger_tensors_stay_apart() -> None:
    """Tiles reach past the last token and row: what lies there is neither read nor written."""
    tokens = torch.full((900, 256), torch.nan, device="cuda", dtype=torch.bfloat16)
    weights = torch.full((1200, 256), torch.nan, device="cuda", dtype=torch.bfloat16)
    x, weight = tokens[:700], weights[:1000]
    x.copy_(_random(700, 256))
    weight.copy_(_random(1000, 256))
    assert relative_error(wide_linear(x, weight), x.float() @ weight.float().T) < ROUNDING


def test_wide_linear_in_a_chain_and_a_graph() -> None:
    """Launches that overlap still see each other's results, replay after replay."""
    weights = [_random(1024, 1024, scale=0.03) for _ in range(6)]
    x = _random(600, 1024)

    def chain() -> Tensor:
        y = x
        for weight in weights:
            y = wide_linear(y, weight, residual=y)
        return y

    graph, out = captured(chain)
    for _ in range(3):
        x.copy_(_random(600, 1024))
        expected = x.float()
        for weight in weights:
            expected = (expected @ weight.float().T + expected).bfloat16().float()
        graph.replay()
        assert relative_error(out, expected) < 3 * ROUNDING

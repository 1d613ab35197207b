"""Products for hundreds of tokens and more against float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dlcore.ops.wide_linear import wide_linear
from tests.gpu.paged_case import needs_kernels, relative_error

pytestmark = needs_kernels

ROUNDING = 3e-3  # of one bf16 result


def _random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


@pytest.mark.parametrize("num_tokens", [1, 512, 1000, 2049, 4100])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (1000, 1032), (24, 64), (5120, 8)])
@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("variant", [0, 2])
def test_wide_linear(num_tokens: int, n: int, k: int, group: int, variant: int) -> None:
    x, weight, residual = _random(num_tokens, k, scale=2), _random(n, k, scale=0.05), None
    plain = x.float() @ weight.float().T
    residual = _random(num_tokens, n)
    assert relative_error(wide_linear(x, weight, group=group, variant=variant), plain) < ROUNDING
    out = wide_linear(x, weight, residual=residual, group=group, variant=variant)
    assert relative_error(out, plain + residual) < ROUNDING


@pytest.mark.parametrize("num_tokens", [1, 513, 4100])
@pytest.mark.parametrize(("inner", "k"), [(3072, 1024), (1000, 1032), (8, 4096)])
@pytest.mark.parametrize("variant", [0, 2])
def test_wide_swiglu(num_tokens: int, inner: int, k: int, variant: int) -> None:
    x, weight = _random(num_tokens, k), _random(2 * inner, k, scale=0.05)
    gate, up = (x.float() @ weight.float().T).chunk(2, dim=-1)
    out = wide_linear(x, weight, swiglu=True, variant=variant)
    assert relative_error(out, functional.silu(gate) * up) < ROUNDING


def test_nothing_past_the_tokens_is_written() -> None:
    x, weight = _random(700, 256), _random(1000, 256)
    arena = torch.full((900, 1000), 7.0, device="cuda", dtype=torch.bfloat16)
    del arena  # the next allocation of this size may reuse it, poisoned
    out = wide_linear(x, weight)
    assert relative_error(out, x.float() @ weight.float().T) < ROUNDING


@pytest.mark.parametrize("variant", [0, 2])
def test_wide_linear_in_a_chain_and_a_graph(variant: int) -> None:
    """Launches that overlap still see each other's results, replay after replay."""
    weights = [_random(1024, 1024, scale=0.03) for _ in range(6)]
    x = _random(600, 1024)

    def chain() -> Tensor:
        y = x
        for weight in weights:
            y = wide_linear(y, weight, residual=y, variant=variant)
        return y

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        chain()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = chain()
    for _ in range(3):
        x.copy_(_random(600, 1024))
        expected = x.float()
        for weight in weights:
            expected = (expected @ weight.float().T + expected).bfloat16().float()
        graph.replay()
        assert relative_error(out, expected) < 3 * ROUNDING

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.tile_linear import LinearTile, tile_linear
from tests.gpu.linear_tiles import TILES
from tests.gpu.paged_case import needs_kernels, relative_error

pytestmark = needs_kernels

EPS = 1e-6
ROUNDING = 3e-3  # of one bf16 result


def _random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x.float(), (x.shape[-1],), weight.float(), EPS)


@pytest.mark.parametrize("num_tokens", [1, 17, 64, 65, 129, 256])
@pytest.mark.parametrize(("n", "k"), [(1024, 3072), (1000, 1088), (24, 4096)])
@pytest.mark.parametrize("tile", TILES)
def test_tile_linear(num_tokens: int, n: int, k: int, tile: LinearTile) -> None:
    x, weight = _random(num_tokens, k, scale=2), _random(n, k, scale=0.05)
    bias, residual = _random(n), _random(num_tokens, n)
    plain = x.float() @ weight.float().T
    assert relative_error(tile_linear(x, weight, tile), plain) < ROUNDING
    out = tile_linear(x, weight, tile, bias=bias, residual=residual)
    assert relative_error(out, plain + bias + residual) < ROUNDING


@pytest.mark.parametrize("num_tokens", [33, 64, 200])
@pytest.mark.parametrize(("inner", "k"), [(3072, 1024), (1000, 1088)])
@pytest.mark.parametrize("tile", TILES)
def test_tile_swiglu(num_tokens: int, inner: int, k: int, tile: LinearTile) -> None:
    x, weight = _random(num_tokens, k), _random(2 * inner, k, scale=0.05)
    gate, up = (x.float() @ weight.float().T).chunk(2, dim=-1)
    out = tile_linear(x, weight, tile, swiglu=True)
    assert relative_error(out, torch.nn.functional.silu(gate) * up) < ROUNDING


def test_tile_linear_in_a_chain_and_a_graph() -> None:
    """Launches that overlap still see each other's results, replay after replay."""
    tile = LinearTile(tokens=64, rows=64, splits=8, stages=2)
    weights = [_random(1024, 1024, scale=0.03) for _ in range(6)]
    x, norm_weight = _random(50, 1024), _random(1024)

    def chain() -> Tensor:
        y = x
        for weight in weights:
            normed = kernels.rms_norm(y, norm_weight, EPS)
            y = tile_linear(normed, weight, tile, residual=y)
        return y

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        chain()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = chain()
    for _ in range(3):
        x.copy_(_random(50, 1024))
        expected = x.float()
        for weight in weights:
            normed = _norm(expected, norm_weight).bfloat16().float()
            expected = (normed @ weight.float().T + expected).bfloat16().float()
        graph.replay()
        assert relative_error(out, expected) < 3 * ROUNDING

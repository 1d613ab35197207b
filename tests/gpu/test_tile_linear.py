from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.tile_linear import (
    NORM_PATIENCE,
    LinearTile,
    new_norm_space,
    tile_linear,
    tile_linear_before_norm,
    tile_linear_of_norm,
    tile_swiglu,
)
from tests.gpu.linear_tiles import SWIGLU_TILES, TILES
from tests.gpu.paged_case import needs_kernels, random_rows, relative_error
from tools.kernel_timing import captured

pytestmark = needs_kernels

EPS = 1e-6
ROUNDING = 3e-3  # of one bf16 result


def _random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def _norm(x: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x.float(), (x.shape[-1],), None, EPS)


@pytest.mark.parametrize("num_tokens", [1, 64, 65, 129, 256, 300, 511])
@pytest.mark.parametrize(("n", "k"), [(1024, 3072), (1000, 1088), (24, 4096)])
@pytest.mark.parametrize("tile", TILES)
def test_tile_linear(num_tokens: int, n: int, k: int, tile: LinearTile) -> None:
    x, weight = _random(num_tokens, k, scale=2), _random(n, k, scale=0.05)
    bias, residual = _random(n), _random(num_tokens, n)
    plain = x.float() @ weight.float().T
    assert relative_error(tile_linear(x, weight, tile), plain) < ROUNDING
    assert relative_error(tile_linear(x, weight, tile, bias=bias), plain + bias) < ROUNDING
    if tile.makes_stream:
        out = tile_linear(x, weight, tile, bias=bias, residual=residual)
        assert relative_error(out, plain + bias + residual) < ROUNDING


@pytest.mark.parametrize("num_tokens", [33, 200, 385])
@pytest.mark.parametrize(("inner", "k"), [(3072, 1024), (1000, 1088)])
@pytest.mark.parametrize("tile", SWIGLU_TILES)
def test_tile_swiglu(num_tokens: int, inner: int, k: int, tile: LinearTile) -> None:
    x, weight = _random(num_tokens, k), _random(2 * inner, k, scale=0.05)
    gate, up = (x.float() @ weight.float().T).chunk(2, dim=-1)
    out = tile_linear(x, weight, tile, swiglu=True)
    assert relative_error(out, torch.nn.functional.silu(gate) * up) < ROUNDING


@pytest.mark.parametrize("num_tokens", [1, 40, 256, 385])
@pytest.mark.parametrize(("inner", "k"), [(3072, 1024), (1000, 1088), (26000, 576)])
@pytest.mark.parametrize("tile", SWIGLU_TILES)
def test_blocks_share_the_norm_of_a_swiglu(
    num_tokens: int, inner: int, k: int, tile: LinearTile
) -> None:
    """Also without patience for each other, and with more of them than multiprocessors."""
    weight, space = _random(2 * inner, k, scale=0.05), new_norm_space(torch.device("cuda", 0))
    assert space is not None
    for _ in range(2):
        x = random_rows(num_tokens, k)
        gate, up = (_norm(x) @ weight.float().T).chunk(2, dim=-1)
        out = tile_swiglu(x, EPS, weight, tile, space)
        assert relative_error(out, torch.nn.functional.silu(gate) * up) < ROUNDING
        for patience in (0, 1, NORM_PATIENCE):
            again = tile_swiglu(x, EPS, weight, tile, space, patience=patience)
            assert torch.equal(again, out)
        assert not space.any()


@pytest.mark.parametrize("num_tokens", [1, 31, 129, 400])
@pytest.mark.parametrize("dim", [1024, 1000, 4096])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("tile", [tile for tile in TILES if tile.makes_stream])
def test_rms_norm_between_two_products(
    num_tokens: int, dim: int, swiglu: bool, tile: LinearTile
) -> None:
    x, weight = random_rows(num_tokens, 576), _random(dim, 576)
    residual = random_rows(num_tokens, dim)
    bias, after = _random(dim), _random(2 * 1032, dim, scale=0.05)
    y, squares = tile_linear_before_norm(x, weight, tile, bias=bias, residual=residual)
    assert torch.equal(y, tile_linear(x, weight, tile, bias=bias, residual=residual))
    assert relative_error(squares.sum(0), y.float().square().sum(1)) < 1e-5
    if dim % 64:
        return
    expected = _norm(y) @ after.float().T
    if swiglu:
        gate, up = expected.chunk(2, dim=-1)
        expected = torch.nn.functional.silu(gate) * up
    for second in SWIGLU_TILES if swiglu else TILES:
        if second.tokens == tile.tokens and second.splits == tile.splits:
            out = tile_linear_of_norm(y, squares, EPS, after, second, swiglu=swiglu)
            assert relative_error(out, expected) < 2 * ROUNDING


def test_tile_linear_in_a_chain_and_a_graph() -> None:
    """Launches that overlap still see each other's results, replay after replay."""
    tile = LinearTile(tokens=64, rows=64, splits=4, stages=2)
    weights = [_random(1024, 1024, scale=0.03) for _ in range(6)]
    x = _random(50, 1024)

    def chain() -> Tensor:
        y = kernels.rms_norm(x, None, EPS)
        for weight in weights:
            y, squares = tile_linear_before_norm(y, weight, tile, residual=y)
            y = tile_linear_of_norm(y, squares, EPS, weight, tile)
        return y

    graph, out = captured(chain)
    for _ in range(3):
        x.copy_(_random(50, 1024))
        expected = _norm(x).bfloat16().float()
        for weight in weights:
            expected = (expected @ weight.float().T + expected).bfloat16()
            expected = (_norm(expected) @ weight.float().T).bfloat16().float()
        graph.replay()
        assert relative_error(out, expected) < 6 * ROUNDING

"""Which kernel takes a product: only ones that exist, and were compared with float32."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dlcore.ops import kernels
from dlcore.ops.tile_linear import STEP, linear_tile
from tests.gpu.linear_tiles import TILES

MAX_SHARED_BYTES = 227 * 1024
tokens = st.integers(1, 600)
rows = st.one_of(st.integers(1, 1 << 18), st.integers(1, 2048).map(lambda n: n * 64))
columns = st.one_of(st.integers(1, 1 << 15), st.integers(1, 512).map(lambda n: n * 64))


@given(tokens, rows, columns)
def test_the_rule_picks_only_tiles_that_gpu_tests_cover(num_tokens: int, n: int, k: int) -> None:
    tile = linear_tile(num_tokens, n, k)
    if tile is None:
        return
    covered = {(t.tokens, t.rows, t.splits) for t in TILES}
    assert (tile.tokens, tile.rows, tile.splits) in covered
    assert n % 8 == 0
    assert k % STEP == 0
    assert 2 <= tile.stages <= 16
    assert tile.splits <= k // STEP
    assert tile.stages * (tile.tokens + tile.rows) * STEP * 2 + 2048 <= MAX_SHARED_BYTES


@given(rows, columns)
def test_a_few_tokens_have_one_kernel_for_norm_and_product(n: int, k: int) -> None:
    weight = torch.empty(n, k, device="meta")
    for num_tokens in range(1, 9):
        assert kernels.skinny_linear_pays(num_tokens, weight) == (k % 64 == 0)


def test_prompts_are_left_to_other_kernels() -> None:
    shapes = ((4096, 1024), (1024, 2048), (6144, 1024), (6144, 4096), (24576, 4096), (4096, 12288))
    for n, k in shapes:
        assert linear_tile(129, n, k) is None
        assert not kernels.skinny_linear_pays(9, torch.empty(n, k, device="meta"))

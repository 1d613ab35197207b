"""Which kernel takes a product: only ones that exist, and were compared with float32."""

from __future__ import annotations

from unittest.mock import patch

import torch
from hypothesis import given
from hypothesis import strategies as st

from dlcore.ops import kernels
from dlcore.ops.linear_argmax import linear_argmax_pays
from dlcore.ops.tile_linear import (
    MANY_ROWS,
    SMALL_WEIGHT,
    STEP,
    LinearTile,
    linear_tile,
)
from tests.gpu.linear_tiles import SWIGLU_TILES, TILES

MAX_SHARED_BYTES = 227 * 1024
LAYER_OF_06B = ((1024, 2048), (6144, 1024), (1024, 3072))  # o, gate_up, down
tokens = st.integers(1, 600)
rows = st.one_of(st.integers(1, 1 << 18), st.integers(1, 2048).map(lambda n: n * 64))
columns = st.one_of(st.integers(1, 1 << 15), st.integers(1, 512).map(lambda n: n * 64))


def _sum_bytes(tile: LinearTile) -> int:
    """A block's sums lie in the ring's place, rows of a token padded by 16 bytes."""
    return tile.tokens * (tile.rows + 4) * 4


@given(tokens, rows, columns, st.booleans())
def test_the_rule_picks_only_tiles_that_gpu_tests_cover(
    num_tokens: int, n: int, k: int, swiglu: bool
) -> None:
    tile = linear_tile(num_tokens, n, k, swiglu=swiglu)
    if tile is None:
        return
    covered = {(t.tokens, t.rows, t.splits) for t in (SWIGLU_TILES if swiglu else TILES)}
    assert (tile.tokens, tile.rows, tile.splits) in covered
    assert n % 8 == 0
    assert k % STEP == 0
    assert 2 <= tile.stages <= 16
    assert tile.splits <= k // STEP
    ring = max(tile.stages * (tile.tokens + tile.rows) * STEP * 2, _sum_bytes(tile))
    static = 256 + 4 * tile.tokens  # barriers, scales
    assert ring + 1024 + static <= MAX_SHARED_BYTES


@given(st.integers(1, 512), rows, columns, st.booleans())
def test_each_block_has_a_multiprocessor_unless_the_weight_has_many_rows(
    num_tokens: int, n: int, k: int, swiglu: bool
) -> None:
    tile = linear_tile(num_tokens, n, k, swiglu=swiglu)
    if tile is None or (num_tokens <= 256 and n > MANY_ROWS):
        return
    blocks = -(-num_tokens // tile.tokens) * -(-n // tile.rows) * tile.splits
    assert blocks <= kernels.MULTIPROCESSORS


@given(st.integers(129, 512), rows, columns)
def test_many_tokens_without_swiglu_meet_small_weights_only(
    num_tokens: int, n: int, k: int
) -> None:
    """More than 128 tokens are left to the library but for those."""
    tile = linear_tile(num_tokens, n, k)
    assert tile is None or (num_tokens <= 256 and n * k <= SMALL_WEIGHT)


@given(st.integers(257, 512), rows, columns)
def test_swiglu_of_many_tokens_takes_one_round(num_tokens: int, n: int, k: int) -> None:
    tile = linear_tile(num_tokens, n, k, swiglu=True)
    if tile is not None:
        blocks = -(-num_tokens // tile.tokens) * -(-n // tile.rows)
        ring = tile.stages * (tile.tokens + tile.rows) * 128
        places = min(2, MAX_SHARED_BYTES // (ring + 2048)) * kernels.MULTIPROCESSORS
        assert 0.7 * kernels.MULTIPROCESSORS <= blocks <= places


def test_the_rule_where_it_was_measured() -> None:
    """SwiGLU's weights of Qwen3-0.6B and 8B, by decode buckets."""
    buckets = (64, 128, 160, 192, 256, 320, 384, 512)
    small = {n: linear_tile(n, 6144, 1024, swiglu=True) for n in buckets}
    large = {n: linear_tile(n, 24576, 4096, swiglu=True) for n in (160, 192, 224, 256, 320, 384)}
    assert {n: t and (t.tokens, t.rows, t.stages) for n, t in small.items()} == {
        64: (64, 64, 13),
        128: (64, 128, 7),
        160: (64, 192, 5),
        192: (64, 192, 5),
        256: (64, 192, 5),
        320: (64, 128, 4),
        384: (128, 192, 5),
        512: (128, 192, 5),
    }
    assert {n: t and (t.tokens, t.rows, t.stages) for n, t in large.items()} == {
        160: (192, 192, 4),
        192: (192, 192, 4),
        224: (256, 192, 4),
        256: (256, 192, 4),
        320: None,
        384: None,
    }


@given(st.integers(1, 512), st.integers(1, 4096).map(lambda n: n * 8))
def test_no_tile_of_the_greedy_head_is_less_than_three_quarters_full(
    num_rows: int, hidden: int
) -> None:
    rows, weight = torch.empty(num_rows, hidden), torch.empty(4096, hidden, device="meta")
    with patch.object(kernels, "usable", return_value=True):
        if linear_argmax_pays(rows.to("meta"), weight):
            assert num_rows % 256 == 0 or num_rows % 256 >= 192


@given(rows, columns)
def test_a_few_tokens_have_one_kernel_for_norm_and_product(n: int, k: int) -> None:
    weight = torch.empty(n, k, device="meta")
    for num_tokens in range(1, 9):
        assert kernels.skinny_linear_pays(num_tokens, weight) == (k % 64 == 0)


def test_some_more_tokens_of_a_small_model_have_it_around_swiglu_only() -> None:
    o, gate_up, down = (torch.empty(n, k, device="meta") for n, k in LAYER_OF_06B)
    for num_tokens in range(9, 17):
        assert kernels.skinny_linear_adds(num_tokens, o)
        assert kernels.skinny_linear_norms(num_tokens, gate_up)
        assert not kernels.skinny_linear_adds(num_tokens, down)
    assert not kernels.skinny_linear_adds(8, o)
    assert not kernels.skinny_linear_adds(17, o)
    assert not kernels.skinny_linear_norms(17, gate_up)


@given(st.integers(1, 32), st.integers(1, 512).map(lambda n: n * 64), columns)
def test_a_small_stream_that_leaves_no_squares_meets_a_product_that_needs_none(
    num_tokens: int, size: int, k: int
) -> None:
    """Else a norm of its own would be between them."""
    if kernels.skinny_linear_adds(num_tokens, torch.empty(size, k, device="meta")):
        assert kernels.skinny_linear_norms(num_tokens, torch.empty(4096, size, device="meta"))


def test_prompts_are_left_to_other_kernels() -> None:
    shapes = ((4096, 1024), (1024, 2048), (6144, 1024), (6144, 4096), (24576, 4096), (4096, 12288))
    for n, k in shapes:
        assert linear_tile(513, n, k) is None
        assert linear_tile(513, n, k, swiglu=True) is None
        assert not kernels.skinny_linear_pays(9, torch.empty(n, k, device="meta"))

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.attention_kernels import NewTokens
from dlcore.ops.project_heads import HEAD_DIM, project_heads
from dlcore.ops.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from dlcore.ops.residual_stream import ResidualStream
from dlcore.ops.tile_linear import linear_tile, tile_linear_of_norm
from dlcore.quant.fp8 import E4M3
from tests.gpu.paged_case import needs_kernels
from tools.kernel_timing import captured

pytestmark = needs_kernels

EPS, NORM_EPS, BLOCK_SIZE, NUM_BLOCKS = 1e-6, 1e-5, 16, 40


def _tokens(num_tokens: int, with_norm: bool) -> NewTokens:
    """Random ones; every seventh is padding."""
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, device="cuda")[:num_tokens].int()
    slots[::7] = -1
    weights = [torch.rand(HEAD_DIM, device="cuda").bfloat16() + 0.5 for _ in range(2)]
    return NewTokens(
        q_weight=weights[0] if with_norm else None,
        k_weight=weights[1] if with_norm else None,
        eps=EPS,
        cos_sin=torch.randn(70, HEAD_DIM, device="cuda"),
        positions=torch.randint(70, (num_tokens,), dtype=torch.int32, device="cuda"),
        slot_mapping=slots,
    )


def _stream(x: Tensor) -> ResidualStream:
    """With the squares of its rows, by pieces of 64, as the product before leaves them."""
    pieces = x.float().square().view(x.shape[0], -1, 64).sum(dim=-1)
    return ResidualStream(x, pieces.T.contiguous())


def _cache(num_kv_heads: int, fp8: bool) -> tuple[Tensor, Tensor | None]:
    shape = (NUM_BLOCKS + 1, 2, num_kv_heads, BLOCK_SIZE, HEAD_DIM)
    if not fp8:
        return torch.full(shape, torch.nan, dtype=torch.bfloat16, device="cuda"), None
    empty = torch.full(shape, 255, dtype=torch.uint8, device="cuda").view(E4M3)
    return empty, torch.rand(2, num_kv_heads, device="cuda") + 0.5


@pytest.mark.parametrize("num_tokens", [133, 160, 200, 256])
@pytest.mark.parametrize(("num_q_heads", "num_kv_heads"), [(16, 8), (20, 4)])
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("fp8", [True, False])
def test_heads_are_those_of_projection_and_rotation_apart(
    num_tokens: int, num_q_heads: int, num_kv_heads: int, with_norm: bool, fp8: bool
) -> None:
    x = (torch.randn(num_tokens, 1024, device="cuda") * 3).bfloat16()
    x[5] *= 1e-3  # so small that eps matters
    rows = (num_q_heads + 2 * num_kv_heads) * HEAD_DIM
    weight = (torch.randn(rows, 1024, device="cuda") * 0.05).bfloat16()
    tile = linear_tile(num_tokens, *weight.shape)
    assert tile is not None
    assert (tile.tokens, tile.rows, tile.splits) == (64, HEAD_DIM, 1)
    tokens = _tokens(num_tokens, with_norm)
    (cache, scales), (apart, _) = _cache(num_kv_heads, fp8), _cache(num_kv_heads, fp8)
    stream = _stream(x)
    assert stream.squares is not None
    q = project_heads(stream, NORM_EPS, weight, tokens, cache, scales)
    expected = qk_norm_rope_kv_write(
        tile_linear_of_norm(x, stream.squares, NORM_EPS, weight, tile),
        tokens,
        apart,
        scales,
    )
    assert torch.equal(q, expected)
    assert torch.equal(cache.view(torch.uint8), apart.view(torch.uint8))


def test_it_sees_what_the_kernel_before_it_wrote() -> None:
    """As a graph of launches that overlap, replay after replay."""
    tokens, (cache, _) = _tokens(256, True), _cache(8, False)
    weight = (torch.randn(4096, 1024, device="cuda") * 0.05).bfloat16()
    source = torch.randn(256, 1024, device="cuda").bfloat16()

    def heads() -> Tensor:
        stream = ResidualStream(kernels.rms_norm(source, None, EPS))
        return project_heads(stream, EPS, weight, tokens, cache)

    graph, out = captured(heads)  # also without squares: the stream is normed by a kernel before
    for _ in range(3):
        source.copy_(torch.randn(256, 1024, device="cuda"))
        graph.replay()
        kept, own = out.clone(), cache.clone()
        torch.cuda.synchronize()
        assert torch.equal(kept, heads())
        assert torch.equal(own.view(torch.uint8), cache.view(torch.uint8))

"""The qkv projection and all that happens between it and attention, in one kernel."""

from __future__ import annotations

from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.attention_kernels import NewTokens
from dlcore.ops.norm import rms_norm
from dlcore.ops.residual_stream import ResidualStream
from dlcore.ops.tile_linear import LinearTile, linear_tile
from dlcore.ops.weight_product import WeightProduct

HEAD_DIM = 128


def project_heads_pays(x: Tensor, weight: Tensor, bias: Tensor | None, kv_cache: Tensor) -> bool:
    """Whether `project_heads` takes these: where the projection alone would have a tile of a head's
    rows."""
    if bias is not None or kv_cache.shape[4] != HEAD_DIM or not kernels.usable(x, weight):
        return False
    return kv_cache.dtype in kernels.KV_CACHE_DTYPES and _head_tile(x, weight) is not None


def _head_tile(x: Tensor, weight: Tensor) -> LinearTile | None:
    tile = linear_tile(x.shape[0], *weight.shape)
    is_head = tile is not None and (tile.tokens, tile.rows, tile.splits) == (64, HEAD_DIM, 1)
    return tile if is_head else None


def project_heads(
    stream: ResidualStream,
    norm_eps: float,
    weight: Tensor,
    tokens: NewTokens,
    kv_cache: Tensor,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """`qk_norm_rope_kv_write` of rms_norm(stream) weight^T, with the same results: q [T, Hq, D].

    stream: [T, K], weight: [(Hq + 2 Hk) D, K], which includes the norm's.
    """
    x, squares = stream.x, stream.squares
    if squares is None:
        x = rms_norm(x, None, norm_eps)
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    num_q_heads = weight.shape[0] // head_dim - 2 * num_kv_heads
    q = x.new_empty(x.shape[0], num_q_heads, head_dim)
    tile = _head_tile(x, weight)
    assert tile is not None
    product = WeightProduct(x=x, weight=weight, squares=squares, eps=norm_eps)
    kernels.call(
        "dlk_project_heads",
        *[product.as_argument(q), tile.stages, tokens.as_argument()],
        *[kernels.pointer(kv_cache), kernels.pointer(kv_scales)],
        *[num_q_heads, num_kv_heads, block_size],
    )
    return q

"""Paged attention in plain torch: the reference of every other backend, and the CPU's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dlcore.quant.fp8 import dequantize
from dlcore.step_buffers import DeviceState, Queries


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    queries: Queries,
    state: DeviceState,
    scale: float,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """See AttentionBackend. Reads lengths on the host, so it cannot be captured."""
    tables = state.block_tables[queries.seq_slots.long()].long()
    seq_lens = queries.seq_lens.tolist()
    cache = _Cache(kv_cache, kv_scales, q.dtype)
    if queries.kind == "decode":
        return _decode(q, cache, tables, seq_lens, scale)
    out = torch.zeros_like(q)
    starts = queries.query_start_loc.tolist()
    for i, seq_len in enumerate(seq_lens):
        query = slice(starts[i], starts[i + 1])
        if query.start < query.stop:
            out[query] = _prefill(q[query], cache, tables[i : i + 1], seq_len, scale)
    return out


class _Cache(NamedTuple):
    blocks: Tensor  # [blocks, 2, Hk, block_size, D]
    scales: Tensor | None  # [2, Hk] of E4M3 blocks
    dtype: torch.dtype  # to attend in

    def context(self, tables: Tensor, max_len: int) -> tuple[Tensor, Tensor]:
        """k, v of positions 0 .. max_len - 1. tables: [n, blocks] -> [n, Hk, max_len, D] each."""
        num_kv_heads, block_size, head_dim = self.blocks.shape[2:]
        num_blocks = -(-max_len // block_size)
        index = tables[:, :num_blocks].flatten()
        if self.scales is None:
            blocks = self.blocks.index_select(0, index)
        else:  # torch gathers bytes, not E4M3
            stored = self.blocks.view(torch.uint8).index_select(0, index).view(self.blocks.dtype)
            blocks = dequantize(stored, self.scales[:, :, None, None], self.dtype)
        blocks = blocks.view(tables.shape[0], num_blocks, *self.blocks.shape[1:])
        shape = (2, tables.shape[0], num_kv_heads, num_blocks * block_size, head_dim)
        k, v = blocks.permute(2, 0, 3, 1, 4, 5).reshape(shape)[:, :, :, :max_len]
        return k, v


def _prefill(q: Tensor, cache: _Cache, table: Tensor, seq_len: int, scale: float) -> Tensor:
    """One sequence. q: [n, Hq, D], its last n positions; table: [1, blocks] -> [n, Hq, D]."""
    num_queries = q.shape[0]
    k, v = cache.context(table, seq_len)
    queries = q.transpose(0, 1).unsqueeze(0)
    mask = None
    if num_queries != seq_len:
        mask = torch.ones(num_queries, seq_len, dtype=torch.bool, device=q.device)
        mask = mask.tril(seq_len - num_queries)
    out = functional.scaled_dot_product_attention(
        queries, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def _decode(q: Tensor, cache: _Cache, tables: Tensor, seq_lens: list[int], scale: float) -> Tensor:
    """One query per sequence, all sequences at once. q: [S, Hq, D], tables: [S, blocks].

    The heads of a group are the query rows of their kv head, so no kv head is read twice.
    """
    num_seqs, num_heads, head_dim = q.shape
    max_len = max(seq_lens)
    k, v = cache.context(tables, max_len)
    num_kv_heads = k.shape[1]
    mask = None
    if num_seqs > 1:
        lengths = torch.tensor(seq_lens, device=q.device).clamp_(min=1)
        mask = (torch.arange(max_len, device=q.device) < lengths[:, None])[:, None, None, :]
    queries = q.view(num_seqs, num_kv_heads, num_heads // num_kv_heads, head_dim)
    out = functional.scaled_dot_product_attention(queries, k, v, attn_mask=mask, scale=scale)
    return out.view(num_seqs, num_heads, head_dim)

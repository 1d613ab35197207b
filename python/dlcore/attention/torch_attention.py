"""Paged attention in plain torch: the reference of every other backend, and the CPU's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dlcore.step_buffers import DeviceState, StepBuffers


def paged_attention(
    q: Tensor, kv_cache: Tensor, step: StepBuffers, state: DeviceState, scale: float
) -> Tensor:
    """See AttentionBackend. Reads lengths on the host, so it cannot be captured."""
    tables = state.block_tables[step.seq_slots.long()].long()
    seq_lens = step.seq_lens.tolist()
    if step.kind == "decode":
        return _decode(q, kv_cache, tables, seq_lens, scale)
    out = torch.zeros_like(q)
    starts = step.query_start_loc.tolist()
    for i, seq_len in enumerate(seq_lens):
        query = slice(starts[i], starts[i + 1])
        if query.start < query.stop:
            out[query] = _prefill(q[query], kv_cache, tables[i : i + 1], seq_len, scale)
    return out


def _context(kv_cache: Tensor, tables: Tensor, max_len: int) -> tuple[Tensor, Tensor]:
    """k and v of positions 0 .. max_len - 1. tables: [n, blocks] -> [n, Hk, max_len, D] each."""
    num_kv_heads, block_size, head_dim = kv_cache.shape[2:]
    num_blocks = -(-max_len // block_size)
    blocks = kv_cache.index_select(0, tables[:, :num_blocks].flatten())
    blocks = blocks.view(tables.shape[0], num_blocks, *kv_cache.shape[1:])
    shape = (2, tables.shape[0], num_kv_heads, num_blocks * block_size, head_dim)
    k, v = blocks.permute(2, 0, 3, 1, 4, 5).reshape(shape)[:, :, :, :max_len]
    return k, v


def _prefill(q: Tensor, kv_cache: Tensor, table: Tensor, seq_len: int, scale: float) -> Tensor:
    """One sequence. q: [n, Hq, D], its last n positions; table: [1, blocks] -> [n, Hq, D]."""
    num_queries = q.shape[0]
    k, v = _context(kv_cache, table, seq_len)
    queries = q.transpose(0, 1).unsqueeze(0)
    mask = None
    if num_queries != seq_len:
        mask = torch.ones(num_queries, seq_len, dtype=torch.bool, device=q.device)
        mask = mask.tril(seq_len - num_queries)
    out = functional.scaled_dot_product_attention(
        queries, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def _decode(
    q: Tensor, kv_cache: Tensor, tables: Tensor, seq_lens: list[int], scale: float
) -> Tensor:
    """One query per sequence, all sequences at once. q: [S, Hq, D], tables: [S, blocks].

    The heads of a group are the query rows of their kv head, so no kv head is read twice.
    """
    num_seqs, num_heads, head_dim = q.shape
    max_len = max(seq_lens)
    k, v = _context(kv_cache, tables, max_len)
    num_kv_heads = k.shape[1]
    mask = None
    if num_seqs > 1:
        lengths = torch.tensor(seq_lens, device=q.device).clamp_(min=1)
        mask = (torch.arange(max_len, device=q.device) < lengths[:, None])[:, None, None, :]
    queries = q.view(num_seqs, num_kv_heads, num_heads // num_kv_heads, head_dim)
    out = functional.scaled_dot_product_attention(queries, k, v, attn_mask=mask, scale=scale)
    return out.view(num_seqs, num_heads, head_dim)

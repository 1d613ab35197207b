"""What happens to q, k and v between the projection and attention, as one op."""

from __future__ import annotations

import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.attention_kernels import NewTokens
from dlcore.ops.norm import rms_norm
from dlcore.ops.residual_stream import PendingNorm
from dlcore.quant.fp8 import quantize


def qk_norm_rope_kv_write(
    qkv: Tensor,
    tokens: NewTokens,
    kv_cache: Tensor,
    kv_scales: Tensor | None = None,
    pending: PendingNorm | None = None,
) -> Tensor:
    """Norms q and k per head, rotates them, writes k and v to the cache, returns q.

    qkv:       [T, (Hq + 2 Hk) * D], the heads of q, then k, then v
    kv_cache:  [num_blocks + 1, 2, Hk, block_size, D], written in place; its last block is scratch,
               so a write to slot -1 lands there
    kv_scales: [2, Hk] float32 of an E4M3 cache, see quant.fp8
    pending:   of qkv, if its rows are still to be scaled
    returns q: [T, Hq, D]
    """
    q_weight, k_weight, eps, cos_sin = tokens.q_weight, tokens.k_weight, tokens.eps, tokens.cos_sin
    positions, slot_mapping = tokens.positions, tokens.slot_mapping
    num_kv_heads, block_size, head_dim = kv_cache.shape[2:]
    is_known = kv_cache.dtype in kernels.KV_CACHE_DTYPES
    if kernels.usable(qkv) and is_known and head_dim in kernels.ROPE_HEAD_DIMS:
        weights, where = (q_weight, k_weight, eps, cos_sin), (positions, slot_mapping)
        return kernels.qk_norm_rope_kv_write(qkv, *weights, *where, kv_cache, kv_scales, pending)
    if pending is not None:
        qkv = pending.apply(qkv)
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_q_heads = heads.shape[1] - 2 * num_kv_heads
    q_and_k, v = heads[:, :-num_kv_heads], heads[:, -num_kv_heads:]
    if q_weight is not None and k_weight is not None:
        head_weights = [q_weight.expand(num_q_heads, -1), k_weight.expand(num_kv_heads, -1)]
        q_and_k = rms_norm(q_and_k, torch.cat(head_weights), eps)
    q_and_k = rotate_half_split(q_and_k, cos_sin[positions.long()])
    slots = slot_mapping.long()
    block = slots.div(block_size, rounding_mode="floor")
    offset = slots - block * block_size
    k = q_and_k[:, num_q_heads:]
    if kv_scales is not None:  # torch has no indexed writes of E4M3: write its bytes
        k = quantize(k, kv_scales[0, :, None]).view(torch.uint8)
        v = quantize(v, kv_scales[1, :, None]).view(torch.uint8)
        kv_cache = kv_cache.view(torch.uint8)
    kv_cache[block, 0, :, offset] = k
    kv_cache[block, 1, :, offset] = v
    return q_and_k[:, :num_q_heads]


def rotate_half_split(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotates pairs (x[i], x[i + D/2]) in float32. x: [T, H, D]; cos_sin: [T, D] float32."""
    cos, sin = cos_sin.unsqueeze(1).chunk(2, dim=-1)
    low, high = x.chunk(2, dim=-1)
    partners = torch.cat([high, low], dim=-1).float()
    rotated = x.float() * torch.cat([cos, cos], dim=-1)
    return rotated.addcmul_(partners, torch.cat([-sin, sin], dim=-1)).to(x.dtype)

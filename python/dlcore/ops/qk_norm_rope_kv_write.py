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
    head_dim = kv_cache.shape[4]
    is_known = kv_cache.dtype in kernels.KV_CACHE_DTYPES
    if kernels.usable(qkv) and is_known and head_dim in kernels.ROPE_HEAD_DIMS:
        return _by_kernel(qkv, tokens, kv_cache, kv_scales, pending)
    return _by_torch(qkv if pending is None else pending.apply(qkv), tokens, kv_cache, kv_scales)


def _by_kernel(
    qkv: Tensor,
    tokens: NewTokens,
    kv_cache: Tensor,
    kv_scales: Tensor | None,
    pending: PendingNorm | None,
) -> Tensor:
    num_kv_heads, block_size, head_dim = kv_cache.shape[2:]
    num_tokens, width = qkv.shape
    num_q_heads = width // head_dim - 2 * num_kv_heads
    q = qkv.new_empty(num_tokens, num_q_heads, head_dim)
    pointer = kernels.pointer
    kernels.call(
        "dlk_qk_norm_rope_kv_write",
        *[tokens.as_argument(qkv), pointer(kv_cache), pointer(kv_scales), pointer(q)],
        *kernels.pending_norm(pending),
        *[num_tokens, num_q_heads, num_kv_heads, block_size, head_dim],
    )
    return q


def _by_torch(qkv: Tensor, tokens: NewTokens, kv_cache: Tensor, kv_scales: Tensor | None) -> Tensor:
    num_kv_heads, head_dim = kv_cache.shape[2], kv_cache.shape[4]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_q_heads = heads.shape[1] - 2 * num_kv_heads
    q_and_k, v = heads[:, :-num_kv_heads], heads[:, -num_kv_heads:]
    if tokens.q_weight is not None and tokens.k_weight is not None:
        q_weights = tokens.q_weight.expand(num_q_heads, -1)
        k_weights = tokens.k_weight.expand(num_kv_heads, -1)
        q_and_k = rms_norm(q_and_k, torch.cat([q_weights, k_weights]), tokens.eps)
    q_and_k = rotate_half_split(q_and_k, tokens.cos_sin[tokens.positions.long()])
    _write(kv_cache, kv_scales, tokens.slot_mapping.long(), q_and_k[:, num_q_heads:], v)
    return q_and_k[:, :num_q_heads]


def _write(kv_cache: Tensor, kv_scales: Tensor | None, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """k and v: [T, Hk, D]."""
    block_size = kv_cache.shape[3]
    block = slots.div(block_size, rounding_mode="floor")
    offset = slots - block * block_size
    if kv_scales is not None:  # torch has no indexed writes of E4M3: write its bytes
        k = quantize(k, kv_scales[0, :, None]).view(torch.uint8)
        v = quantize(v, kv_scales[1, :, None]).view(torch.uint8)
        kv_cache = kv_cache.view(torch.uint8)
    kv_cache[block, 0, :, offset] = k
    kv_cache[block, 1, :, offset] = v


def rotate_half_split(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotates pairs (x[i], x[i + D/2]) in float32. x: [T, H, D]; cos_sin: [T, D] float32."""
    cos, sin = cos_sin.unsqueeze(1).chunk(2, dim=-1)
    low, high = x.chunk(2, dim=-1)
    partners = torch.cat([high, low], dim=-1).float()
    rotated = x.float() * torch.cat([cos, cos], dim=-1)
    return rotated.addcmul_(partners, torch.cat([-sin, sin], dim=-1)).to(x.dtype)

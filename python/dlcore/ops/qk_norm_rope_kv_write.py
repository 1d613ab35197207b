"""What happens to q, k and v between the projection and attention, as one op."""

from __future__ import annotations

from torch import Tensor

from dlcore.ops.norm import rms_norm


def qk_norm_rope_kv_write(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    kv_cache: Tensor,
) -> Tensor:
    """Norms q and k per head, rotates them, writes k and v to the cache, returns q.

    qkv:          [T, (Hq + 2 Hk) * D], the heads of q, then k, then v
    q_weight:     [D], or None for a model without q/k norm; k_weight likewise
    cos_sin:      [max_positions, D] float32, the cosines of D/2 frequencies, then their sines
    positions:    [T] int32
    slot_mapping: [T] int32, block * block_size + offset; -1 = padding: nothing is kept. (The last
                  block of kv_cache is scratch, so a write to slot -1 lands there.)
    kv_cache:     [num_blocks + 1, 2, Hk, block_size, D], written in place
    returns q:    [T, Hq, D]
    """
    num_kv_heads, block_size, head_dim = kv_cache.shape[2:]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_q_heads = heads.shape[1] - 2 * num_kv_heads
    q, k, v = heads.split([num_q_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_weight is not None:
        q = rms_norm(q, q_weight, eps)
    if k_weight is not None:
        k = rms_norm(k, k_weight, eps)
    cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
    q, k = rotate_half_split(q, cos, sin), rotate_half_split(k, cos, sin)
    slots = slot_mapping.long()
    block = slots.div(block_size, rounding_mode="floor")
    offset = slots - block * block_size
    kv_cache[block, 0, :, offset] = k
    kv_cache[block, 1, :, offset] = v
    return q


def rotate_half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs (x[i], x[i + D/2]) in float32. x: [T, H, D]; cos, sin: [T, 1, D/2]."""
    low, high = x.float().chunk(2, dim=-1)
    rotated = x.new_empty(x.shape)
    half = x.shape[-1] // 2
    rotated[..., :half] = low * cos - high * sin
    rotated[..., half:] = high * cos + low * sin
    return rotated

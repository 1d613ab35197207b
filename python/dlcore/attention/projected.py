"""Attention that starts from the qkv projection: where the two kernels of it are one."""

from __future__ import annotations

from torch import Tensor

from dlcore.attention import AttentionBackend
from dlcore.attention.hopper_attention import HopperAttention
from dlcore.ops.attention_kernels import NewTokens
from dlcore.ops.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from dlcore.step_buffers import DeviceState, StepBuffers, WantedRows


def may_be_pending(
    backend: AttentionBackend, x: Tensor, num_q_heads: int, kv_cache: Tensor, step: StepBuffers
) -> bool:
    """Whether `attend_projected` takes a projection of x whose norm is pending."""
    if not isinstance(backend, HopperAttention):
        return True
    return not backend.takes_projected(x, num_q_heads, kv_cache, step)


def attend_projected(
    backend: AttentionBackend,
    tokens: NewTokens,
    kv_cache: Tensor,
    step: StepBuffers,
    state: DeviceState,
    scale: float,
    kv_scales: Tensor | None,
    rows: WantedRows | None = None,
) -> Tensor:
    """Norms and rotates q and k, writes k and v to `kv_cache`, attends: [T, Hq, D].

    tokens: of the whole step, whatever its kind. rows: if given, the only tokens that attend, of
    a mixed step; the result is [S, Hq, D] then. The rest: see AttentionBackend.
    """
    num_kv_heads, head_dim = kv_cache.shape[2], kv_cache.shape[4]
    num_q_heads = tokens.qkv.shape[1] // head_dim - 2 * num_kv_heads
    if isinstance(backend, HopperAttention) and backend.takes_projected(
        tokens.qkv, num_q_heads, kv_cache, step
    ):
        return backend.attend_projected(tokens, kv_cache, step, state, scale, kv_scales)
    q = qk_norm_rope_kv_write(
        tokens.qkv,
        tokens.q_weight,
        tokens.k_weight,
        tokens.eps,
        tokens.cos_sin,
        tokens.positions,
        tokens.slot_mapping,
        kv_cache,
        kv_scales,
        tokens.pending,
    )
    if rows is not None:
        return backend(rows.of(q), kv_cache, rows, state, scale, kv_scales)
    return backend(q, kv_cache, step, state, scale, kv_scales)

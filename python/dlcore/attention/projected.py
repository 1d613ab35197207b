"""Attention that starts from the residual stream: as few kernels from there on as pay."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlcore.attention import AttentionBackend
from dlcore.attention.hopper_attention import HopperAttention
from dlcore.ops.attention_kernels import NewTokens
from dlcore.ops.linear import norm_linear
from dlcore.ops.project_heads import project_heads, project_heads_pays
from dlcore.ops.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from dlcore.ops.residual_stream import ResidualStream
from dlcore.step_buffers import DeviceState, Queries, WantedRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """From RMSNorm of the stream to q, k and v."""

    weight: Tensor  # [(Hq + 2 Hk) D, hidden], which includes the norm's
    bias: Tensor | None
    norm_eps: float
    num_q_heads: int


def attend_stream(
    backend: AttentionBackend,
    stream: ResidualStream,
    projection: Projection,
    tokens: NewTokens,
    kv_cache: Tensor,
    step: Queries,
    state: DeviceState,
    scale: float,
    kv_scales: Tensor | None,
    rows: WantedRows | None = None,
) -> Tensor:
    """Projects, norms and rotates q and k, writes k and v to `kv_cache`, attends: [T, Hq, D].

    tokens: of the whole step, whatever its kind. rows: if given, the only tokens that attend, of
    a mixed step; the result is [S, Hq, D] then. The rest: see AttentionBackend.
    """
    p = projection
    if isinstance(backend, HopperAttention) and backend.takes_projected(
        stream.x, p.num_q_heads, kv_cache, step
    ):
        qkv, _ = norm_linear(stream, p.norm_eps, p.weight, p.bias)
        return backend.attend_projected(qkv, tokens, kv_cache, step, state, scale, kv_scales)
    q = _queries(stream, p, tokens, kv_cache, kv_scales)
    if rows is not None:
        return backend(rows.of(q), kv_cache, rows, state, scale, kv_scales)
    return backend(q, kv_cache, step, state, scale, kv_scales)


def _queries(
    stream: ResidualStream,
    projection: Projection,
    tokens: NewTokens,
    kv_cache: Tensor,
    kv_scales: Tensor | None,
) -> Tensor:
    """q: [T, Hq, D]; k and v are in the cache."""
    p = projection
    if project_heads_pays(stream.x, p.weight, p.bias, kv_cache):
        return project_heads(stream, p.norm_eps, p.weight, tokens, kv_cache, kv_scales)
    qkv, pending = norm_linear(stream, p.norm_eps, p.weight, p.bias, may_leave_norm=True)
    return qk_norm_rope_kv_write(qkv, tokens, kv_cache, kv_scales, pending)

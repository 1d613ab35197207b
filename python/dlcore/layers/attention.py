"""Grouped-query attention over the paged KV cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlcore.attention import AttentionBackend
from dlcore.layers.linear import Linear
from dlcore.layers.norm import RMSNorm
from dlcore.ops.linear import norm_linear, residual_linear
from dlcore.ops.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from dlcore.ops.residual_stream import ResidualStream
from dlcore.step_buffers import DeviceState, StepBuffers


class GqaAttention(nn.Module):
    """q, k, v by one projection; optional per-head q/k norm; rope; paged attention; output."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        norm_eps: float,
        qk_norm: bool,
        bias: bool,
        backend: AttentionBackend,
    ) -> None:
        super().__init__()
        self.scale = head_dim**-0.5
        self.norm_eps = norm_eps
        self.backend = backend
        self.kv_scales: Tensor | None = None  # [2, Hk] float32 for an E4M3 cache
        self.qkv_proj = Linear(hidden_size, (num_heads + 2 * num_kv_heads) * head_dim, bias)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, bias)
        self.q_norm: nn.Parameter | None = None
        self.k_norm: nn.Parameter | None = None
        if qk_norm:
            self.q_norm = nn.Parameter(torch.empty(head_dim), requires_grad=False)
            self.k_norm = nn.Parameter(torch.empty(head_dim), requires_grad=False)

    def forward(
        self,
        stream: ResidualStream,
        norm: RMSNorm,
        next_norm: RMSNorm,
        step: StepBuffers,
        state: DeviceState,
        cos_sin: Tensor,
        kv_cache: Tensor,
    ) -> ResidualStream:
        """The stream with the attention of its norm added; writes this step's k and v to
        `kv_cache`. next_norm: the one that will read the result."""
        qkv_proj, o_proj = self.qkv_proj, self.o_proj
        qkv, residual = norm_linear(stream, norm.weight, norm.eps, qkv_proj.weight, qkv_proj.bias)
        q = qk_norm_rope_kv_write(
            qkv,
            self.q_norm,
            self.k_norm,
            self.norm_eps,
            cos_sin,
            step.positions,
            step.slot_mapping,
            kv_cache,
            self.kv_scales,
        )
        out = self.backend(q, kv_cache, step, state, self.scale, self.kv_scales).flatten(1)
        return residual_linear(out, o_proj.weight, o_proj.bias, residual, next_norm.weight)

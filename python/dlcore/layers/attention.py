"""Grouped-query attention over the paged KV cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlcore.attention import AttentionBackend
from dlcore.layers.linear import Linear
from dlcore.ops.qk_norm_rope_kv_write import qk_norm_rope_kv_write
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
        self.qkv_proj = Linear(hidden_size, (num_heads + 2 * num_kv_heads) * head_dim, bias)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, bias)
        self.q_norm: nn.Parameter | None = None
        self.k_norm: nn.Parameter | None = None
        if qk_norm:
            self.q_norm = nn.Parameter(torch.empty(head_dim), requires_grad=False)
            self.k_norm = nn.Parameter(torch.empty(head_dim), requires_grad=False)

    def forward(
        self,
        x: Tensor,
        step: StepBuffers,
        state: DeviceState,
        cos_sin: Tensor,
        kv_cache: Tensor,
    ) -> Tensor:
        """x: [T, hidden] -> [T, hidden]; writes this step's k and v to `kv_cache`."""
        q = qk_norm_rope_kv_write(
            self.qkv_proj(x),
            self.q_norm,
            self.k_norm,
            self.norm_eps,
            cos_sin,
            step.positions,
            step.slot_mapping,
            kv_cache,
        )
        out: Tensor = self.o_proj(self.backend(q, kv_cache, step, state, self.scale).flatten(1))
        return out

"""Grouped-query attention over the paged KV cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlcore.attention import AttentionBackend
from dlcore.attention.projected import Projection, attend_stream
from dlcore.layers.linear import Linear
from dlcore.ops.attention_kernels import NewTokens
from dlcore.ops.linear import residual_linear
from dlcore.ops.residual_stream import ResidualStream
from dlcore.quant.fp8 import scales_for
from dlcore.step_buffers import DeviceState, StepBuffers, WantedRows


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
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
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

    def keep_kv_as_e4m3(self) -> None:
        """Before the weights are there; fit_kv_scales when they are."""
        shape = (2, self.num_kv_heads)
        self.kv_scales = torch.ones(shape, device=self.qkv_proj.weight.device)

    def fit_kv_scales(self) -> None:
        """kv_scales [2, Hk] such that no key and no value can saturate, whatever the input.

        The projection, which has the weight of the norm before it, reads a vector of norm
        sqrt(hidden_size): that bounds each value by its row. A normed key is no longer than
        sqrt(head_dim) times k_norm's largest, and rotation keeps lengths. Without k_norm its head's
        rows together bound it.
        """
        if self.kv_scales is None:
            return
        rows = 2 * self.num_kv_heads * self.head_dim
        weight = self.qkv_proj.weight[-rows:].float()
        bounds = weight.shape[1] ** 0.5 * weight.norm(dim=1)
        if self.qkv_proj.bias is not None:
            bounds = bounds + self.qkv_proj.bias[-rows:].float().abs()
        k, v = bounds.view(2, self.num_kv_heads, self.head_dim)
        k = k.norm(dim=1)
        if self.k_norm is not None:
            k = (self.head_dim**0.5 * self.k_norm.float().abs().max()).expand_as(k)
        smallest = torch.finfo(torch.float32).tiny  # of a head whose weights are all zero
        self.kv_scales.copy_(scales_for(torch.stack([k, v.amax(dim=1)]).clamp(min=smallest)))

    def new_tokens(self, step: StepBuffers, cos_sin: Tensor) -> NewTokens:
        """What makes heads of the projection of this step's tokens."""
        return NewTokens(
            q_weight=self.q_norm,
            k_weight=self.k_norm,
            eps=self.norm_eps,
            cos_sin=cos_sin,
            positions=step.positions,
            slot_mapping=step.slot_mapping,
        )

    def forward(
        self,
        stream: ResidualStream,
        step: StepBuffers,
        state: DeviceState,
        cos_sin: Tensor,
        kv_cache: Tensor,
        rows: WantedRows | None = None,
    ) -> ResidualStream:
        """The stream with the attention of its RMSNorm added, whose weight is in qkv_proj; writes
        this step's k and v to `kv_cache`. rows: the only ones wanted of the result."""
        qkv_proj, o_proj = self.qkv_proj, self.o_proj
        projection = Projection(
            weight=qkv_proj.weight,
            bias=qkv_proj.bias,
            norm_eps=self.norm_eps,
            num_q_heads=self.num_heads,
        )
        tokens = self.new_tokens(step, cos_sin)
        # Before attention, so that nothing parts it from the product after it.
        residual = stream.x if rows is None else rows.of(stream.x)
        out = attend_stream(
            self.backend,
            stream,
            projection,
            tokens,
            kv_cache,
            step,
            state,
            self.scale,
            self.kv_scales,
            rows,
        )
        return residual_linear(out.flatten(1), o_proj.weight, o_proj.bias, residual)

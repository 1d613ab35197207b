"""A greedy decode step as the kernels see it: all layers with their own weights and caches, and the
head."""

from __future__ import annotations

import torch
from kernel_inputs import EPS, VOCAB, PagedQueries, Shape, bf16, paged_kv, state_of
from torch import Tensor, nn

from dlcore.attention.hopper_attention import HopperAttention
from dlcore.attention.projected import Projection, attend_stream
from dlcore.layers.norm import RMSNorm
from dlcore.ops import attention_kernels, kernels
from dlcore.ops.linear import linear, norm_swiglu, residual_linear
from dlcore.ops.linear_argmax import linear_argmax, linear_argmax_pays
from dlcore.ops.residual_stream import ResidualStream
from dlcore.ops.tile_linear import new_norm_space


class DecodeStep:
    def __init__(self, shape: Shape, batch: int, context: int) -> None:
        d, width = shape.head_dim, (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim
        self.shape = shape
        self.layers = [
            (
                bf16(width, shape.hidden, scale=0.02),
                bf16(shape.hidden, shape.q_heads * d, scale=0.02),
                bf16(2 * shape.inner, shape.hidden, scale=0.02),
                bf16(shape.hidden, shape.inner, scale=0.02),
                paged_kv(shape, [1] * batch, [context] * batch),
            )
            for _ in range(shape.layers)
        ]
        self.head = bf16(VOCAB, shape.hidden, scale=0.02)
        self.head_norm, self.last_norm = bf16(d), RMSNorm(shape.hidden, EPS)
        self.last_norm.weight = nn.Parameter(bf16(shape.hidden), requires_grad=False)
        self.x = bf16(batch, shape.hidden)
        self.cos_sin = torch.randn(8192, d, device="cuda")
        kv = self.layers[0][4]
        self.positions = kv.seq_lens - 1
        self.slots = (kv.block_tables[:, -1] * 16 + 15).contiguous()
        self.rows = torch.arange(batch, dtype=torch.int32, device="cuda")
        self.ints = torch.zeros(2, batch, dtype=torch.int32, device="cuda")
        self.attention = HopperAttention.create(self.x.device)
        self.norm_space = new_norm_space(self.x.device)
        self.argmax_space = kernels.argmax_workspace(batch, self.x.device)
        weights = sum(2.0 * w.numel() for layer in self.layers for w in layer[:4])
        cache = 4.0 * batch * context * shape.kv_heads * d * shape.layers
        self.num_bytes = weights + cache + 2.0 * self.head.numel()

    def run(self, _: int) -> None:
        stream = ResidualStream(self.x.clone())  # as an embedding's: products add to it
        for qkv_w, o_w, gate_up_w, down_w, kv in self.layers:
            out = self.attend(stream, qkv_w, kv)
            stream = residual_linear(out.flatten(1), o_w, None, stream.x)
            inner = norm_swiglu(stream, EPS, gate_up_w, self.norm_space)
            stream = residual_linear(inner, down_w, None, stream.x)
        self.sample(stream)

    def sample(self, stream: ResidualStream) -> None:
        normed = self.last_norm(stream.x)
        slots, sampled, last_tokens, space = self.rows, *self.ints, self.argmax_space
        if linear_argmax_pays(normed, self.head):
            linear_argmax(normed, self.head, slots, sampled, last_tokens, space)
        else:
            logits = linear(normed, self.head)
            kernels.argmax(logits, slots, sampled, last_tokens, space)

    def attend(
        self, stream: ResidualStream, weight: Tensor, kv: attention_kernels.PagedKv
    ) -> Tensor:
        tokens = attention_kernels.NewTokens(
            q_weight=self.head_norm,
            k_weight=self.head_norm,
            eps=EPS,
            cos_sin=self.cos_sin,
            positions=self.positions,
            slot_mapping=self.slots,
        )
        projection = Projection(
            weight=weight, bias=None, norm_eps=EPS, num_q_heads=self.shape.q_heads
        )
        queries, state = PagedQueries("decode", kv), state_of(kv.block_tables, self.rows)
        cache = (kv.kv_cache, queries, state, kv.scale, kv.kv_scales)
        return attend_stream(self.attention, stream, projection, tokens, *cache)

"""Paged attention by the hand-written kernels for Hopper; Triton's for the shapes they lack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlcore.attention import triton_attention
from dlcore.ops import attention_kernels, kernels
from dlcore.step_buffers import DeviceState, Queries

MAX_KV_HEADS = 128


def available(device: torch.device) -> bool:
    return kernels.runs_on(device)


@dataclass(frozen=True, slots=True)
class HopperAttention:
    """An AttentionBackend; one for an engine, for its kernels' splits meet in its workspace."""

    workspace: Tensor
    prefill_workspace: Tensor

    @classmethod
    def create(cls, device: torch.device) -> HopperAttention:
        head_dim = max(attention_kernels.ATTENTION_HEAD_DIMS)
        return cls(
            attention_kernels.decode_workspace(
                attention_kernels.MAX_ATTENTION_SEQS, MAX_KV_HEADS, head_dim, device
            ),
            attention_kernels.prefill_workspace(device),
        )

    def __call__(
        self,
        q: Tensor,
        kv_cache: Tensor,
        queries: Queries,
        state: DeviceState,
        scale: float,
        kv_scales: Tensor | None = None,
    ) -> Tensor:
        """See AttentionBackend."""
        if not _supports(q, q.shape[1], kv_cache, queries):
            return triton_attention.paged_attention(q, kv_cache, queries, state, scale, kv_scales)
        paged = _paged(kv_cache, queries, state, scale, kv_scales)
        out = torch.empty_like(q)
        has_kernel = q.shape[2] == attention_kernels.PREFILL_HEAD_DIM
        pays = attention_kernels.mixed_attention_pays(q.shape[0], queries.num_seqs)
        if queries.kind == "mixed" and has_kernel and pays:
            attention_kernels.mixed_attention(q, paged, out, self.workspace, self.prefill_workspace)
            return out
        attention_kernels.decode_attention(q, paged, out, self.workspace)
        if queries.kind == "decode":
            return out
        if has_kernel:
            attention_kernels.prefill_attention(q, paged, out, self.prefill_workspace)
        else:
            triton_attention.prefill_attention(
                q, kv_cache, queries, state, scale, kv_scales, out, min_query=1
            )
        return out

    def takes_projected(
        self, activations: Tensor, num_q_heads: int, kv_cache: Tensor, step: Queries
    ) -> bool:
        """Whether `attend_projected` is for this step."""
        return (
            step.kind == "decode"
            and num_q_heads // kv_cache.shape[2] <= attention_kernels.MAX_PROJECTED_GROUP
            and attention_kernels.decode_projected_pays(step.num_seqs, num_q_heads, kv_cache)
            and _supports(activations, num_q_heads, kv_cache, step)
        )

    def attend_projected(
        self,
        qkv: Tensor,
        tokens: attention_kernels.NewTokens,
        kv_cache: Tensor,
        step: Queries,
        state: DeviceState,
        scale: float,
        kv_scales: Tensor | None,
    ) -> Tensor:
        """See attention.projected."""
        paged = _paged(kv_cache, step, state, scale, kv_scales)
        return attention_kernels.decode_projected(qkv, tokens, paged, self.workspace)


def _paged(
    kv_cache: Tensor,
    queries: Queries,
    state: DeviceState,
    scale: float,
    kv_scales: Tensor | None,
) -> attention_kernels.PagedKv:
    return attention_kernels.PagedKv(
        kv_cache=kv_cache,
        kv_scales=kv_scales,
        query_start_loc=None if queries.kind == "decode" else queries.query_start_loc,
        seq_lens=queries.seq_lens,
        seq_slots=queries.seq_slots,
        block_tables=state.block_tables,
        scale=scale,
        only_last_is_new=queries.kind != "rows",
    )


def _supports(activations: Tensor, num_q_heads: int, kv_cache: Tensor, queries: Queries) -> bool:
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    return (
        kernels.usable(activations)
        and kv_cache.dtype in kernels.KV_CACHE_DTYPES
        and head_dim in attention_kernels.ATTENTION_HEAD_DIMS
        and block_size in (16, 32, 64)
        and num_q_heads // num_kv_heads <= attention_kernels.MAX_ATTENTION_GROUP
        and num_kv_heads <= MAX_KV_HEADS
        and queries.num_seqs <= attention_kernels.MAX_ATTENTION_SEQS
    )

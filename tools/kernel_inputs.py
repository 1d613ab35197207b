"""Random inputs for timing kernels: the shapes of two models, tensors, and a paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlcore.ops import attention_kernels
from dlcore.step_buffers import DeviceState

EPS = 1e-6
VOCAB = 151936


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    name: str
    layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    inner: int
    head_dim: int = 128


SHAPES = (
    Shape(name="0.6b", layers=28, hidden=1024, q_heads=16, kv_heads=8, inner=3072),
    Shape(name="8b", layers=36, hidden=4096, q_heads=32, kv_heads=8, inner=12288),
)


@dataclass(frozen=True, slots=True)
class PagedQueries:
    """What an attention backend reads of a step over `kv`."""

    kind: str  # "decode" or "mixed"
    kv: attention_kernels.PagedKv

    @property
    def query_start_loc(self) -> Tensor:
        assert self.kv.query_start_loc is not None
        return self.kv.query_start_loc

    @property
    def seq_lens(self) -> Tensor:
        return self.kv.seq_lens

    @property
    def seq_slots(self) -> Tensor:
        assert self.kv.seq_slots is not None
        return self.kv.seq_slots

    @property
    def num_seqs(self) -> int:
        return self.seq_lens.shape[0]


def state_of(block_tables: Tensor, last_tokens: Tensor) -> DeviceState:
    return DeviceState(
        block_tables=block_tables, last_tokens=last_tokens, token_counts=last_tokens, kv_caches=()
    )


def bf16(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.empty(*shape, device="cuda", dtype=torch.bfloat16).normal_(0, scale)


def paged_kv(
    shape: Shape, query_lens: list[int], seq_lens: list[int], *, fp8: bool = False
) -> attention_kernels.PagedKv:
    blocks_each = [-(-n // 16) for n in seq_lens]
    total = sum(blocks_each)
    cache = bf16(total, 2, shape.kv_heads, 16, shape.head_dim)
    order = torch.randperm(total, dtype=torch.int32)
    tables = torch.zeros(len(seq_lens), max(blocks_each), dtype=torch.int32)
    start = 0
    for s, n in enumerate(blocks_each):
        tables[s, :n] = order[start : start + n]
        start += n
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    return attention_kernels.PagedKv(
        kv_cache=cache.to(torch.float8_e4m3fn) if fp8 else cache,
        kv_scales=torch.ones(2, shape.kv_heads, device="cuda") if fp8 else None,
        query_start_loc=starts.cuda(),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device="cuda"),
        seq_slots=torch.arange(len(seq_lens), dtype=torch.int32, device="cuda"),
        block_tables=tables.cuda(),
        scale=shape.head_dim**-0.5,
    )

"""Random paged-attention problems and their float32 answers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dlcore.ops import attention_kernels, kernels
from dlcore.step_buffers import DeviceState, StepBuffers

needs_kernels = pytest.mark.skipif(
    not torch.cuda.is_available() or not kernels.runs_on(torch.device("cuda", 0)),
    reason="needs a Hopper GPU and libdlcore_kernels.so",
)


def relative_error(out: Tensor, reference: Tensor) -> float:
    out, reference = out.double(), reference.double()
    assert torch.isfinite(out).all()
    return ((out - reference).norm() / reference.norm()).item()


def random_rows(rows: int, size: int) -> Tensor:
    """[rows, size] bf16: rows of sizes from 1e-3, where a norm's eps counts, to 1e3."""
    sizes = 10 ** (6 * torch.rand(rows, 1, device="cuda") - 3)
    return (torch.randn(rows, size, device="cuda") * sizes).bfloat16()


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedCase:
    """Sequences of a step over a cache whose unused entries are NaN."""

    q: Tensor
    kv: attention_kernels.PagedKv
    keys: list[Tensor]  # per sequence [len, Hk, D] float32
    values: list[Tensor]
    query_lens: list[int]

    @classmethod
    def random(
        cls,
        query_lens: list[int],
        seq_lens: list[int],
        *,
        num_q_heads: int = 16,
        num_kv_heads: int = 8,
        head_dim: int = 128,
        block_size: int = 16,
        padding_seqs: int = 2,
        fp8: bool = False,
        key_growth: float = 0.0,
    ) -> PagedCase:
        """key_growth: how much larger a sequence's first key is than its last."""
        device = torch.device("cuda")
        counts = [-(-n // block_size) for n in seq_lens]
        num_blocks, num_seqs = sum(counts) + 3, len(seq_lens)
        order = torch.randperm(num_blocks - 1).tolist()
        shape = (num_blocks, 2, num_kv_heads, block_size, head_dim)
        cache = torch.full(shape, torch.nan, device=device)
        tables = torch.full((num_seqs + 5, max(counts) + 1), num_blocks - 1, dtype=torch.int32)
        slots = torch.randperm(num_seqs + 5)[:num_seqs]
        scales = torch.rand(2, num_kv_heads, device=device) * 0.1 + 0.05 if fp8 else None
        keys, values = [], []
        for s, n in enumerate(seq_lens):
            blocks = [order.pop() for _ in range(counts[s])]
            tables[slots[s], : counts[s]] = torch.tensor(blocks, dtype=torch.int32)
            for which, kept in ((0, keys), (1, values)):
                rows = torch.randn(n, num_kv_heads, head_dim, device=device) * 1.5
                if which == 0:
                    rows *= torch.linspace(1 + key_growth, 1, n, device=device)[:, None, None]
                rows = _stored(rows, None if scales is None else scales[which])
                kept.append(rows if scales is None else rows * scales[which][:, None])
                for i, block in enumerate(blocks):
                    part = rows[i * block_size : (i + 1) * block_size]
                    cache[block, which, :, : part.shape[0]] = part.transpose(0, 1)
        starts = [0]
        for n in query_lens:
            starts.append(starts[-1] + n)
        starts += [starts[-1]] * padding_seqs
        q = torch.randn(starts[-1] + padding_seqs, num_q_heads, head_dim, device=device)
        lens = torch.tensor(seq_lens + [0] * padding_seqs, dtype=torch.int32)
        all_slots = torch.cat([slots.int(), torch.full((padding_seqs,), -1, dtype=torch.int32)])
        kv = attention_kernels.PagedKv(
            kv_cache=cache.to(torch.float8_e4m3fn if fp8 else torch.bfloat16),
            kv_scales=scales,
            query_start_loc=torch.tensor(starts, dtype=torch.int32, device=device),
            seq_lens=lens.to(device),
            seq_slots=all_slots.to(device),
            block_tables=tables.to(device),
            scale=head_dim**-0.5,
        )
        return cls(q=q.bfloat16(), kv=kv, keys=keys, values=values, query_lens=query_lens)

    def as_step(self, kind: str) -> tuple[StepBuffers, DeviceState]:
        """What an attention backend reads of the case."""
        empty = torch.zeros(self.q.shape[0], dtype=torch.int32, device=self.q.device)
        starts, slots = self.kv.query_start_loc, self.kv.seq_slots
        assert starts is not None
        assert slots is not None
        step = StepBuffers(
            kind=kind,
            arena=empty,
            header=empty,
            token_ids=empty,
            positions=empty,
            slot_mapping=empty,
            token_seq=empty,
            query_start_loc=starts,
            seq_lens=self.kv.seq_lens,
            seq_slots=slots,
            logits_indices=empty,
            row_start_loc=empty,
            row_fields=empty,
        )
        tables = self.kv.block_tables
        state = DeviceState(
            block_tables=tables, last_tokens=empty, token_counts=empty, kv_caches=()
        )
        return step, state

    def reference(self, seq: int) -> tuple[slice, Tensor]:
        """Where sequence `seq`'s queries lie, and their attention in float32: [n, Hq, D]."""
        start = sum(self.query_lens[:seq])
        where = slice(start, start + self.query_lens[seq])
        q = self.q[where].float()
        n, length = q.shape[0], self.keys[seq].shape[0]
        group = q.shape[1] // self.keys[seq].shape[1]
        k = self.keys[seq].repeat_interleave(group, dim=1)
        v = self.values[seq].repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * self.kv.scale
        mask = torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n)
        probs = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        return where, torch.einsum("hqk,khd->qhd", probs, v)


def _stored(rows: Tensor, scale: Tensor | None) -> Tensor:
    """Rows as the cache keeps them: bf16, or divided by the scale and rounded to E4M3."""
    if scale is None:
        return rows.bfloat16().float()
    return (rows / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn).float()

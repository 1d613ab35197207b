"""Random steps written into real arenas, and attention computed the slow, obvious way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlcore import _core
from dlcore.model_runner import allocate_state
from dlcore.step_buffers import Arenas, DeviceState, StepBuffers


@dataclass
class RandomStep:
    q: Tensor
    kv_cache: Tensor
    step: StepBuffers
    state: DeviceState
    num_tokens: int  # real ones; the rest of the bucket is padding
    query_lens: list[int]
    seq_lens: list[int]


def make_step(
    *,
    seed: int,
    query_lens: list[int],
    seq_lens: list[int],
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    block_size: int = 16,
    extra_tokens: int = 0,
    extra_seqs: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> RandomStep:
    """A step of len(query_lens) sequences in a bucket larger by the extras, its KV cache and the
    unused blocks full of random numbers."""
    rng = torch.Generator().manual_seed(seed)
    count, tokens = len(query_lens), sum(query_lens)
    max_len = max(seq_lens)
    options = _core.EngineOptions(
        max_num_batched_tokens=tokens + extra_tokens,
        max_num_seqs=count + extra_seqs,
        max_model_len=max(max_len, 2),
        block_size=block_size,
        vocab_size=64,
        num_kv_blocks=1024,
        cache_groups=[("paged", 1, 1, 0)],
    )
    arenas = Arenas.allocate(options, torch.device(device))
    kind = "decode" if all(n == 1 for n in query_lens) and extra_tokens == extra_seqs else "mixed"
    key = _core.StepKey(kind, "greedy", tokens + extra_tokens, count + extra_seqs)
    step = arenas.step_buffers(key)
    blocks_per_seq = -(-max_len // block_size)
    num_blocks = count * blocks_per_seq + 3
    shape = (num_blocks + 1, 2, num_kv_heads, block_size, head_dim)
    kv_cache = torch.randn(shape, generator=rng).to(dtype).to(device)
    state = allocate_state(options, (kv_cache,), torch.device(device))
    slots = torch.randperm(count + extra_seqs, generator=rng)[:count].int()
    blocks = torch.randperm(num_blocks, generator=rng)[: count * blocks_per_seq]
    state.block_tables[slots.long(), :blocks_per_seq] = blocks.view(count, -1).int().to(device)
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    step.query_start_loc.fill_(tokens)
    step.query_start_loc[: count + 1] = starts.int().to(device)
    step.seq_lens[:count] = torch.tensor(seq_lens, dtype=torch.int32, device=device)
    step.seq_slots.fill_(-1)
    step.seq_slots[:count] = slots.to(device)
    q = torch.randn(tokens + extra_tokens, num_heads, head_dim, generator=rng)
    return RandomStep(q.to(dtype).to(device), kv_cache, step, state, tokens, query_lens, seq_lens)


def naive_attention(case: RandomStep, scale: float) -> Tensor:
    """One query, one head at a time, in float64. [num_tokens, Hq, D]"""
    q, cache = case.q.double().cpu(), case.kv_cache.double().cpu()
    tables = case.state.block_tables.cpu()[case.step.seq_slots.long().cpu()].long()
    block_size, group = cache.shape[3], q.shape[1] // cache.shape[2]
    out = torch.zeros(case.num_tokens, *q.shape[1:], dtype=torch.float64)
    token = 0
    for i, (query_len, seq_len) in enumerate(zip(case.query_lens, case.seq_lens, strict=True)):
        context = cache[tables[i, : -(-seq_len // block_size)]]  # [blocks, 2, Hk, bs, D]
        joined = context.permute(1, 2, 0, 3, 4).flatten(2, 3)  # [2, Hk, positions, D]
        for j in range(query_len):
            visible = seq_len - query_len + j + 1
            for head in range(q.shape[1]):
                k, v = joined[:, head // group, :visible]
                out[token, head] = (k @ q[token, head] * scale).softmax(0) @ v
            token += 1
    return out

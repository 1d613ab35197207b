"""Views of the arena, and the buckets that graphs are captured for."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from dlcore import _core
from dlcore.capture import decode_sizes, mixed_sizes
from dlcore.step_buffers import Arenas

OPTIONS = _core.EngineOptions(
    max_num_batched_tokens=64,
    max_num_seqs=16,
    max_model_len=128,
    block_size=16,
    vocab_size=100,
    num_kv_blocks=16,
    cache_groups=[("paged", 1, 1, 0)],
)


@pytest.mark.parametrize("variant", ["greedy", "random", "full"])
@pytest.mark.parametrize(("num_tokens", "num_seqs"), [(1, 1), (16, 16), (64, 16), (37, 5), (8, 11)])
def test_a_copy_of_the_row_fields_serves_every_token_bucket(
    variant: str, num_tokens: int, num_seqs: int
) -> None:
    """A model graph copies them as the full variant has them; a sampler graph of another token
    bucket, and of any variant, reads its own fields from the copy."""
    arenas = Arenas.allocate(OPTIONS, torch.device("cpu"))
    arenas.input.copy_(torch.randint(0, 256, arenas.input.shape, dtype=torch.uint8))
    step = arenas.step_buffers(_core.StepKey("mixed", "full", num_tokens, num_seqs))
    copy = step.row_fields.clone()
    sampler = arenas.sampler_buffers(_core.StepKey("mixed", variant, num_seqs, num_seqs), copy)
    direct = arenas.sampler_buffers(_core.StepKey("mixed", variant, num_tokens, num_seqs))
    for field in fields(direct):
        want, got = getattr(direct, field.name), getattr(sampler, field.name)
        if isinstance(want, Tensor):
            assert torch.equal(want.view(torch.uint8), got.view(torch.uint8)), field.name
        else:
            assert want == got


@pytest.mark.parametrize("max_num_seqs", [1, 2, 7, 16, 100, 256, 300, 1024])
@pytest.mark.parametrize("max_num_batched_tokens", [1, 7, 64, 100, 2048, 8192])
def test_buckets_cover_every_step(max_num_seqs: int, max_num_batched_tokens: int) -> None:
    max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
    decode = decode_sizes(max_num_seqs)
    assert decode == sorted(set(decode))
    assert decode[-1] == max_num_seqs
    mixed = mixed_sizes(max_num_batched_tokens, decode)
    assert (max_num_batched_tokens, max_num_seqs) in mixed
    assert all(seqs in decode and tokens <= max_num_batched_tokens for tokens, seqs in mixed)
    for tokens in range(1, max_num_batched_tokens + 1, max(1, max_num_batched_tokens // 50)):
        for seqs in {1, min(tokens, max_num_seqs)}:
            assert any(t >= tokens and s >= seqs for t, s in mixed)

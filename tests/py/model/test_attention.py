"""Every attention backend against the slow, obvious attention."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model.random_steps import make_step, naive_attention

from dlcore.attention import torch_attention, triton_attention

SHAPES = [  # (num_heads, num_kv_heads, head_dim, block_size)
    (4, 2, 32, 16),
    (6, 2, 64, 4),
    (5, 1, 16, 1),
]


def random_lengths(seed: int, decode: bool) -> tuple[list[int], list[int]]:
    rng = random.Random(seed)
    queries = [1 if decode else rng.choice([1, 1, 2, 7, 33]) for _ in range(rng.randint(1, 5))]
    return queries, [n + rng.choice([0, 1, 15, 16, 40]) for n in queries]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_torch_attention_is_exact(shape: tuple[int, ...], decode: bool, seed: int) -> None:
    heads, kv_heads, dim, block_size = shape
    queries, lengths = random_lengths(seed, decode)
    case = make_step(
        seed=seed, query_lens=queries, seq_lens=lengths, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=dim, block_size=block_size,
    )  # fmt: skip
    out = torch_attention.paged_attention(case.q, case.kv_cache, case.step, case.state, 0.2)
    torch.testing.assert_close(out.double(), naive_attention(case, 0.2), atol=2e-5, rtol=1e-4)


@pytest.mark.skipif(not triton_attention.available(), reason="triton is not installed")
def test_the_triton_kernels_are_exact_in_their_interpreter() -> None:
    """In a process of its own: the interpreter is chosen when the kernels are defined."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    subprocess.run(
        [sys.executable, "-m", "model.interpreted_triton"],
        check=True,
        timeout=110,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
    )

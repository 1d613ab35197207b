"""The sampling kernels draw what the torch reference draws."""

from __future__ import annotations

import pytest
import torch

from dlcore.ops import kernels, sample
from tests.gpu.paged_case import needs_kernels

pytestmark = needs_kernels

ROWS = 256
CUTS = {  # temperature, top_k, top_p, min_p
    "none": (0.8, 0, 1.0, 0.0),
    "greedy": (0.0, 50, 0.9, 0.1),
    "top_k": (1.0, 50, 1.0, 0.0),
    "top_k_of_one": (1.3, 1, 1.0, 0.0),
    "top_p": (0.7, 0, 0.9, 0.0),
    "min_p": (1.0, 0, 1.0, 0.05),
    "all": (1.0, 200, 0.95, 0.001),
    "flat": (50.0, 0, 0.9, 0.0),  # more candidates than shared memory holds
    "flat_top_k": (50.0, 30000, 0.5, 0.0),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1000, 151936])
def test_draws_equal_the_reference(cut: str, dtype: torch.dtype, vocab: int) -> None:
    rows = ROWS if vocab == 1000 else 24
    cuda = {"device": "cuda"}
    logits = (torch.randn(rows, vocab, **cuda) * 3).to(dtype)  # bf16: many ties
    temperature, top_k, top_p, min_p = CUTS[cut]
    values = (
        torch.full((rows,), temperature, **cuda),
        torch.full((rows,), top_k, dtype=torch.int32, **cuda),
        torch.full((rows,), top_p, **cuda),
        torch.full((rows,), min_p, **cuda),
        torch.randint(-(2**62), 2**62, (rows,), **cuda),
        torch.randint(0, 40000, (rows,), dtype=torch.int32, **cuda),
    )
    space = kernels.argmax_workspace(rows, logits.device)
    reference = sample.random_sample(logits.float(), *values)
    for _ in range(2):  # the workspace is clean after a launch
        tokens = kernels.random_sample(logits, *values, space)
        # A sum of probabilities that rounds differently may move one token across top_p's edge.
        allowed = 0 if top_p == 1.0 else max(1, rows // 100)
        assert int((tokens != reference).sum()) <= allowed


def test_rows_of_one_batch_may_differ_in_everything() -> None:
    logits = torch.randn(len(CUTS), 4096, device="cuda") * 3
    columns = list(zip(*CUTS.values(), strict=True))
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32)
    values = [torch.tensor(c, dtype=d, device="cuda") for c, d in zip(columns, dtypes, strict=True)]
    values.append(torch.arange(len(CUTS), device="cuda"))
    values.append(torch.arange(len(CUTS), dtype=torch.int32, device="cuda"))
    space = kernels.argmax_workspace(len(CUTS), logits.device)
    together = kernels.random_sample(logits, *values, space)
    for i in range(len(CUTS)):
        alone = kernels.random_sample(
            logits[i : i + 1], *[v[i : i + 1].contiguous() for v in values], space
        )
        assert int(alone) == int(together[i])


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((64, 1000), -torch.inf, device="cuda")
    logits[:, 500:510] = 0.0
    ones = torch.ones(64, device="cuda")
    ints = torch.zeros(64, dtype=torch.int32, device="cuda")
    space = kernels.argmax_workspace(64, logits.device)
    seeds = torch.arange(64, device="cuda")
    for top_k in (0, 20, 5):
        for top_p in (1.0, 0.5):
            tokens = kernels.random_sample(
                logits, ones, ints + top_k, ones * top_p, ones * 0, seeds, ints, space
            )
            assert bool(((tokens >= 500) & (tokens < 510)).all())

from __future__ import annotations

import pytest
import torch

from dlcore.attention import choose_attention
from dlcore.ops import kernels
from tests.gpu.paged_case import PagedCase, needs_kernels, relative_error

pytestmark = needs_kernels

# bf16 operands, float32 sums: rounding of P and of the result.
BOUND = 6e-3


def _decode(case: PagedCase, workspace: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.full_like(case.q, torch.nan)
    if workspace is None:
        _, _, num_kv_heads, _, head_dim = case.kv.kv_cache.shape
        workspace = kernels.decode_workspace(1024, num_kv_heads, head_dim, out.device)
    kernels.decode_attention(case.q, case.kv, out, workspace)
    return out


@pytest.mark.parametrize(
    ("seq_lens", "options"),
    [
        ([1], {}),
        ([300], {}),
        ([128, 129, 1, 17, 2000], {}),
        ([40000, 5, 700], {"num_q_heads": 32}),
        ([5000] * 3, {"num_kv_heads": 2, "num_q_heads": 16}),
        ([333, 4097], {"head_dim": 64}),
        ([333, 4097], {"block_size": 32}),
        ([333, 4097], {"block_size": 64, "num_q_heads": 8}),
        (list(range(1, 1000, 4)), {}),
        ([300, 9000], {"fp8": True}),
        ([333, 4097], {"head_dim": 64, "fp8": True}),
    ],
)
def test_decode_equals_attention_over_the_sequence(seq_lens: list[int], options: dict) -> None:
    case = PagedCase.random([1] * len(seq_lens), seq_lens, **options)
    out = _decode(case)
    for seq in range(len(seq_lens)):
        where, reference = case.reference(seq)
        assert relative_error(out[where], reference) < BOUND, seq


def test_decode_leaves_prefilling_sequences_alone_and_can_run_again() -> None:
    case = PagedCase.random([1, 7, 1, 30], [4000, 77, 19, 30])
    workspace = kernels.decode_workspace(64, 8, 128, case.q.device)
    first, second = _decode(case, workspace), _decode(case, workspace)
    for seq in (0, 2):
        where, reference = case.reference(seq)
        assert relative_error(first[where], reference) < BOUND
        assert relative_error(second[where], reference) < BOUND
    for seq in (1, 3):
        assert first[case.reference(seq)[0]].isnan().all()


@pytest.mark.parametrize(
    ("query_lens", "seq_lens", "options"),
    [
        ([2], [2], {}),
        ([128], [128], {}),
        ([300], [300], {}),
        ([77, 128, 5], [77, 1000, 4096], {}),
        ([1, 64, 1, 130], [500, 64, 9, 643], {"num_q_heads": 32}),
        ([2] * 70 + [200], [300] * 70 + [201], {"num_q_heads": 8}),
        ([100, 33], [1133, 33], {"block_size": 32, "num_kv_heads": 2, "num_q_heads": 14}),
        ([100, 33], [1133, 2100], {"block_size": 64, "num_kv_heads": 4, "num_q_heads": 32}),
        ([300], [300], {"fp8": True}),
        ([77, 1, 128, 5], [77, 50, 1000, 4096], {"fp8": True, "num_q_heads": 32}),
        ([2] * 70 + [200], [300] * 70 + [201], {"fp8": True, "num_q_heads": 8}),
        ([100, 33], [1133, 2100], {"fp8": True, "block_size": 64, "num_kv_heads": 4}),
        ([700] * 40, [700] * 40, {"fp8": True, "block_size": 32}),
    ],
)
def test_prefill_is_causal_over_the_context(
    query_lens: list[int], seq_lens: list[int], options: dict
) -> None:
    case = PagedCase.random(query_lens, seq_lens, **options)
    out = torch.full_like(case.q, torch.nan)
    workspace = kernels.prefill_workspace(out.device)
    for _ in range(2):  # the workspace is clean after a launch
        out.fill_(torch.nan)
        kernels.prefill_attention(case.q, case.kv, out, workspace)
    for seq, num_queries in enumerate(query_lens):
        where, reference = case.reference(seq)
        if num_queries > 1:
            assert relative_error(out[where], reference) < BOUND, seq
        else:
            assert out[where].isnan().all()


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("query_lens", "seq_lens"),
    [([77, 1, 128, 5], [77, 3000, 1000, 4096]), ([1] * 5, [1, 900, 17, 300, 64])],
)
@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_a_backend_reads_an_e4m3_cache(
    backend: str, query_lens: list[int], seq_lens: list[int], head_dim: int
) -> None:
    case = PagedCase.random(query_lens, seq_lens, head_dim=head_dim, fp8=True)
    step, state = case.as_step("decode" if max(query_lens) == 1 else "mixed")
    out = choose_attention(backend, case.q.device)(
        case.q, case.kv.kv_cache, step, state, case.kv.scale, case.kv.kv_scales
    )
    for seq in range(len(query_lens)):
        where, reference = case.reference(seq)
        assert relative_error(out[where], reference) < BOUND, seq

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dlcore.attention import choose_attention
from dlcore.ops import attention_kernels
from dlcore.ops.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from tests.gpu.paged_case import PagedCase, needs_kernels, relative_error
from tools.kernel_timing import captured

pytestmark = needs_kernels

# bf16 operands, float32 sums: rounding of P and of the result.
BOUND = 6e-3


def _decode(case: PagedCase, workspace: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.full_like(case.q, torch.nan)
    if workspace is None:
        _, _, num_kv_heads, _, head_dim = case.kv.kv_cache.shape
        workspace = attention_kernels.decode_workspace(1024, num_kv_heads, head_dim, out.device)
    attention_kernels.decode_attention(case.q, case.kv, out, workspace)
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
        ([300] * 20, {}),
        ([7000, 17] * 10, {}),
        ([513, 640, 1024, 3] * 4, {}),
        ([1300, 900] * 4, {}),
        ([300, 9000], {"fp8": True}),
        ([333, 4097], {"head_dim": 64, "fp8": True}),
        # many pairs: whole ones, cut ones, and both ways with every kind of cache
        ([256] * 40, {}),
        ([1] * 300, {"num_q_heads": 32}),
        (list(range(240, 340)), {"num_q_heads": 32, "block_size": 64}),
        ([3000] + [1] * 140, {"num_kv_heads": 2, "num_q_heads": 14}),
        ([20000, 17] * 20, {}),
        (list(range(1, 600, 4)), {"head_dim": 64, "block_size": 32}),
        (list(range(1, 600, 4)), {"fp8": True}),
        ([100] * 140, {"fp8": True, "num_q_heads": 64}),
        (list(range(1, 600, 4)), {"head_dim": 64, "fp8": True}),
    ],
)
def test_decode_equals_attention_over_the_sequence(seq_lens: list[int], options: dict) -> None:
    case = PagedCase.random([1] * len(seq_lens), seq_lens, **options)
    out = _decode(case)
    for seq in range(len(seq_lens)):
        where, reference = case.reference(seq)
        assert relative_error(out[where], reference) < BOUND, seq
    for _ in range(10):  # whoever of those that share a sequence ends last
        assert torch.equal(_decode(case).nan_to_num(), out.nan_to_num())


@pytest.mark.parametrize("copies", [1, 20])
def test_decode_leaves_prefilling_sequences_alone_and_can_run_again(copies: int) -> None:
    case = PagedCase.random([1, 7, 1, 30] * copies, [4000, 77, 19, 30] * copies)
    workspace = attention_kernels.decode_workspace(128, 8, 128, case.q.device)
    first, second = _decode(case, workspace), _decode(case, workspace)
    for seq, num_queries in enumerate(case.query_lens):
        where, reference = case.reference(seq)
        if num_queries == 1:
            assert relative_error(first[where], reference) < BOUND
            assert relative_error(second[where], reference) < BOUND
        else:
            assert first[where].isnan().all()


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("seq_lens", [[300, 17, 4097], list(range(1, 320, 2)), [260] * 48])
def test_a_captured_decode_sees_the_token_that_the_kernel_before_it_writes(
    seq_lens: list[int], fp8: bool
) -> None:
    case = PagedCase.random([1] * len(seq_lens), seq_lens, padding_seqs=0, fp8=fp8)
    num_seqs, device = len(seq_lens), case.q.device
    cache, tables, slots = case.kv.kv_cache, case.kv.block_tables, case.kv.seq_slots
    assert slots is not None
    last = case.kv.seq_lens.long() - 1
    blocks, offsets = tables[slots.long(), last // 16].long(), last % 16
    new = [torch.stack([rows[-1] for rows in kept]) for kept in (case.keys, case.values)]
    qkv = torch.cat([case.q.flatten(1), *(rows.flatten(1).bfloat16() for rows in new)], dim=1)
    tokens = attention_kernels.NewTokens(
        q_weight=None,
        k_weight=None,
        eps=0.0,
        cos_sin=torch.cat([torch.ones(1, 64), torch.zeros(1, 64)], dim=1).to(device),
        positions=torch.zeros(num_seqs, dtype=torch.int32, device=device),
        slot_mapping=(blocks * 16 + offsets).int(),
    )
    outs = [torch.empty_like(case.q) for _ in range(4)]
    workspace = attention_kernels.decode_workspace(num_seqs, 8, 128, device)
    nan = torch.full((), 255, dtype=torch.uint8, device=device)  # every byte of it

    def forget() -> None:
        cache.view(torch.uint8)[blocks, :, :, offsets] = nan

    def write_and_attend() -> None:
        for out in outs:
            q = qk_norm_rope_kv_write(qkv, tokens, cache, case.kv.kv_scales)
            attention_kernels.decode_attention(q, case.kv, out, workspace)
            forget()

    forget()
    graph, _ = captured(write_and_attend)
    for _ in range(3):
        for out in outs:
            out.fill_(torch.nan)
        graph.replay()
        for out in outs:
            assert torch.equal(out, outs[0])
            for seq in range(num_seqs):
                where, reference = case.reference(seq)
                assert relative_error(out[where], reference) < BOUND, seq


def _projected(case: PagedCase, with_norm: bool) -> tuple[Tensor, attention_kernels.NewTokens]:
    """Random projections of the token that each sequence of the case ends with."""
    tables, slots = case.kv.block_tables, case.kv.seq_slots
    assert slots is not None
    _, _, num_kv_heads, block_size, head_dim = case.kv.kv_cache.shape
    num_seqs, num_q_heads = case.q.shape[:2]
    device = tables.device
    last = case.kv.seq_lens.long() - 1
    blocks = tables[slots.long(), last.clamp(min=0) // block_size]
    heads = torch.randn(num_seqs, num_q_heads + 2 * num_kv_heads, head_dim, device=device)
    weights = [torch.rand(head_dim, device=device).bfloat16() + 0.5 for _ in range(2)]
    tokens = attention_kernels.NewTokens(
        q_weight=weights[0] if with_norm else None,
        k_weight=weights[1] if with_norm else None,
        eps=1e-6,
        cos_sin=torch.randn(50, head_dim, device=device),
        positions=torch.randint(50, (num_seqs,), dtype=torch.int32, device=device),
        slot_mapping=torch.where(last < 0, -1, blocks * block_size + last % block_size).int(),
    )
    return heads.bfloat16().flatten(1), tokens


@pytest.mark.parametrize(
    ("seq_lens", "options"),
    [
        ([1], {}),
        ([16, 17, 300], {"num_q_heads": 32}),
        ([128, 129, 1, 17, 2000], {"num_q_heads": 14, "num_kv_heads": 2}),
        ([40000, 5, 700], {"num_q_heads": 56}),
        ([333, 4097], {"head_dim": 64, "block_size": 32}),
        ([300, 9000, 16], {"fp8": True}),
        ([333, 4097], {"head_dim": 64, "fp8": True, "block_size": 64}),
        ([300] * 20, {}),
        ([7000, 17] * 10, {}),
        ([513, 640, 1024, 3] * 4, {}),
        ([1300, 128, 129] * 3, {"num_q_heads": 32}),
        ([640] * 12, {"head_dim": 64}),
        ([640, 1100] * 6, {"fp8": True}),
        ([256] * 40, {"num_q_heads": 32}),
        (list(range(1, 1000, 4)), {}),
        ([20000, 17] * 20, {}),
        ([1] * 300, {"num_q_heads": 8}),
        (list(range(240, 340)), {"num_q_heads": 56, "block_size": 64}),
        ([3000] + [1] * 140, {"num_kv_heads": 2, "num_q_heads": 14}),
        (list(range(1, 600, 4)), {"head_dim": 64}),
        (list(range(1, 300, 4)), {"fp8": True, "num_q_heads": 24}),
        (list(range(1, 600, 4)), {"fp8": True}),
        (list(range(1, 600, 4)), {"head_dim": 64, "fp8": True}),
    ],
)
@pytest.mark.parametrize("with_norm", [True, False])
def test_decode_from_the_projection_equals_the_two_kernels(
    seq_lens: list[int], options: dict, with_norm: bool
) -> None:
    case = PagedCase.random([1] * len(seq_lens), seq_lens, **options)
    qkv, tokens = _projected(case, with_norm)
    cache = case.kv.kv_cache
    num_kv_heads, head_dim = cache.shape[2], cache.shape[4]
    workspace = attention_kernels.decode_workspace(1024, num_kv_heads, head_dim, cache.device)
    kv = replace(case.kv, query_start_loc=None)
    # The new token's place holds NaN: nothing may read it before it is written.
    kept = tokens.slot_mapping[tokens.slot_mapping >= 0].long()
    nan = torch.full((), 255, dtype=torch.uint8, device=cache.device)
    block_size = cache.shape[3]
    cache.view(torch.uint8)[kept // block_size, :, :, kept % block_size] = nan
    for _ in range(2):  # the workspace is clean after a launch
        own = cache.clone()
        out = attention_kernels.decode_projected(qkv, tokens, replace(kv, kv_cache=own), workspace)
    q = qk_norm_rope_kv_write(qkv, tokens, cache, kv.kv_scales)
    expected = torch.empty_like(q)
    attention_kernels.decode_attention(q, kv, expected, workspace)
    live = slice(0, len(seq_lens))  # not the padding
    assert torch.equal(own.view(torch.uint8), cache.view(torch.uint8))
    assert torch.equal(out[live], expected[live])


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
        # a row's largest score grows far, some four times on its way to the first keys
        ([77, 300, 5], [77, 2000, 4096], {"key_growth": 9.0}),
        ([77, 300, 5], [77, 2000, 4096], {"key_growth": 9.0, "fp8": True, "num_q_heads": 32}),
        ([128], [4224], {"key_growth": 9.0, "num_q_heads": 32}),
        # blocks share the keys of a tile of work
        ([128], [4224], {"num_q_heads": 32}),
        ([20], [9000], {"num_q_heads": 32}),
        ([3, 90, 1, 300], [20000, 700, 50, 2300], {}),
        ([2] * 70 + [5, 6], [200] * 70 + [12000, 700], {"num_q_heads": 8}),
        ([40, 33], [5000, 6001], {"block_size": 32, "num_kv_heads": 2, "num_q_heads": 14}),
        ([2048], [2048], {"num_kv_heads": 1, "num_q_heads": 2}),  # more parts than tiles of keys
        ([128, 2], [4224, 1000], {"fp8": True, "num_q_heads": 32}),
    ],
)
def test_prefill_is_causal_over_the_context(
    query_lens: list[int], seq_lens: list[int], options: dict
) -> None:
    case = PagedCase.random(query_lens, seq_lens, **options)
    workspace = attention_kernels.prefill_workspace(case.q.device)
    outs = []
    for _ in range(3):  # the workspace is clean after a launch
        out = torch.full_like(case.q, torch.nan)
        attention_kernels.prefill_attention(case.q, case.kv, out, workspace)
        outs.append(out.nan_to_num())
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
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

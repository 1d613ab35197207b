"""Decode and prefill attention of a mixed step, beside each other."""

from __future__ import annotations

import pytest
import torch
from model.row_steps import Share, make_step, random_model

from dlcore.ops import attention_kernels
from dlcore.ops.norm import rms_norm
from dlcore.ops.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from tests.gpu.paged_case import PagedCase, needs_kernels, relative_error
from tools.kernel_timing import captured

pytestmark = needs_kernels

GPU = torch.device("cuda", 0)
BOUND = 6e-3  # bf16 operands, float32 sums: rounding of P and of the result
LAYERS, REPLAYS = 4, 5


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(
    ("query_lens", "seq_lens", "options"),
    [
        ([300], [300], {}),
        ([1], [300], {}),
        ([1] * 5 + [77], [1, 900, 17, 300, 64, 77], {}),
        ([64, 1, 130, 1], [64, 500, 643, 9], {"num_q_heads": 32}),
        ([1] * 20 + [500, 200], [640] * 20 + [500, 900], {"num_q_heads": 32}),
        # decode attention streams
        ([700] * 40, [700] * 40, {}),
        ([1] * 40, list(range(300, 340)), {}),
        ([1] * 60 + [512] * 4, [*range(600, 660), *[512] * 4], {}),
        ([3, 1] * 40, [40, 5000] * 40, {"num_q_heads": 64}),
        ([1] * 255 + [512], [400] * 255 + [2000], {"block_size": 32}),
        ([1] * 140 + [2000], [3000] + [1] * 139 + [2000], {"num_kv_heads": 2, "num_q_heads": 14}),
        # blocks share the keys of a tile of prefill attention's work
        ([1] * 40 + [100], [600] * 40 + [9000], {"num_q_heads": 32}),
    ],
)
def test_every_sequence_attends_to_its_context(
    query_lens: list[int], seq_lens: list[int], options: dict, fp8: bool
) -> None:
    case = PagedCase.random(query_lens, seq_lens, fp8=fp8, **options)
    num_kv_heads = case.kv.kv_cache.shape[2]
    workspace = attention_kernels.decode_workspace(1024, num_kv_heads, 128, GPU)
    prefill_workspace = attention_kernels.prefill_workspace(GPU)
    out = torch.empty_like(case.q)
    for _ in range(3):  # the workspaces are clean after a launch
        out.fill_(torch.nan)
        attention_kernels.mixed_attention(case.q, case.kv, out, workspace, prefill_workspace)
        for seq in range(len(query_lens)):
            where, reference = case.reference(seq)
            assert relative_error(out[where], reference) < BOUND, seq


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(
    "shares",
    [
        [Share(3 * i, 180 + i) for i in range(40)],
        [Share(500 + i, 1) for i in range(80)] + [Share(0, 600), Share(100, 400)],
        [Share(500, 1)] * 10 + [Share(0, 300)],
        [Share(0, 900)],
    ],
)
def test_both_see_what_their_step_writes_and_who_comes_next_sees_both(
    shares: list[Share], fp8: bool
) -> None:
    """In chains of launches that overlap, over a cache of NaN where the step writes."""
    model = random_model(GPU, torch.bfloat16, head_dim=128, fp8=fp8)
    attn = model.layers[0].attn
    step, state = make_step(model, shares, extra_tokens=0, extra_seqs=0)
    before = state.kv_caches[0]
    caches = [before.clone() for _ in range(LAYERS)]
    shape = (LAYERS, step.num_tokens, attn.qkv_proj.weight.shape[0])
    projections = torch.randn(shape, device=GPU).bfloat16()
    tokens = attn.new_tokens(step, model.cos_sin)
    workspace = attention_kernels.decode_workspace(step.num_seqs, 8, 128, GPU)
    prefill_workspace = attention_kernels.prefill_workspace(GPU)

    def attend(layer: int, beside: bool) -> torch.Tensor:
        kv = attention_kernels.PagedKv(
            kv_cache=caches[layer],
            kv_scales=attn.kv_scales,
            query_start_loc=step.query_start_loc,
            seq_lens=step.seq_lens,
            seq_slots=step.seq_slots,
            block_tables=state.block_tables,
            scale=attn.scale,
        )
        q = qk_norm_rope_kv_write(projections[layer], tokens, kv.kv_cache, kv.kv_scales)
        out = torch.empty_like(q)
        if beside:
            attention_kernels.mixed_attention(q, kv, out, workspace, prefill_workspace)
        else:
            attention_kernels.decode_attention(q, kv, out, workspace)
            torch.cuda.synchronize()
            attention_kernels.prefill_attention(q, kv, out, prefill_workspace)
        return rms_norm(out.flatten(1), None, 1e-6)

    expected = [attend(layer, beside=False) for layer in range(LAYERS)]
    graph, results = captured(lambda: [attend(layer, beside=True) for layer in range(LAYERS)])
    for _ in range(REPLAYS):
        for cache, result in zip(caches, results, strict=True):
            cache.copy_(before)
            result.fill_(torch.nan)
        graph.replay()
        for result, alone in zip(results, expected, strict=True):
            assert relative_error(result, alone.float()) < 1e-2

"""A mixed step's last layer, which goes on with the wanted rows only, on the GPU's kernels."""

from __future__ import annotations

import pytest
import torch
from model.row_steps import (
    SHARES,
    Share,
    make_step,
    num_rows,
    random_model,
    rows_of_all_tokens,
)

from dlcore.attention import choose_attention
from dlcore.ops import attention_kernels
from dlcore.ops.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from tests.gpu.paged_case import needs_kernels, relative_error
from tools.kernel_timing import captured

pytestmark = needs_kernels

GPU = torch.device("cuda", 0)
# Streaming decode attention, products for hundreds of tokens, and a write that takes its time.
MANY_PROMPTS = [Share(3 * i, 180 + i) for i in range(40)]
REPLAYS = 5


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(
    ("shares", "backend"),
    [*((shares, "auto") for shares in [*SHARES, "many prompts"]), ("everything", "triton")],
)
def test_a_row_does_not_depend_on_whether_the_last_layer_runs_for_all(
    shares: str, fp8: bool, head_dim: int, backend: str
) -> None:
    model = random_model(
        GPU, torch.bfloat16, head_dim=head_dim, fp8=fp8, attention=choose_attention(backend, GPU)
    )
    step, state = make_step(model, SHARES.get(shares, MANY_PROMPTS))
    before = [cache.clone() for cache in state.kv_caches]
    count = num_rows(step)
    with torch.inference_mode():
        expected = rows_of_all_tokens(model, step, state)[:count]
        written = [cache.clone() for cache in state.kv_caches]
        graph, rows = captured(lambda: model(step, state))
        for _ in range(REPLAYS):
            for cache, old in zip(state.kv_caches, before, strict=True):
                cache.copy_(old)
            rows.fill_(torch.nan)
            graph.replay()
            assert relative_error(rows[:count], expected) < 2e-2
    for cache, whole in zip(state.kv_caches, written, strict=True):
        assert relative_error(cache[:-1].float(), whole[:-1].float()) < 1e-2


@pytest.mark.parametrize("fp8", [False, True])
def test_decode_attention_waits_for_tokens_of_its_own_step(fp8: bool) -> None:
    """Right after the kernel that writes them, into a cache of NaN."""
    model = random_model(GPU, torch.bfloat16, head_dim=128, fp8=fp8)
    attn = model.layers[0].attn
    step, state = make_step(model, [Share(0, n.num_tokens) for n in MANY_PROMPTS], extra_seqs=0)
    cache = state.kv_caches[0]
    qkv = torch.randn(step.num_tokens, attn.qkv_proj.weight.shape[0], device=GPU).bfloat16()
    q = torch.randn(step.num_seqs, 16, 128, device=GPU).bfloat16()
    paged = attention_kernels.PagedKv(
        kv_cache=cache,
        kv_scales=attn.kv_scales,
        query_start_loc=None,
        seq_lens=step.seq_lens,
        seq_slots=step.seq_slots,
        block_tables=state.block_tables,
        scale=attn.scale,
        only_last_is_new=False,
    )
    out = torch.empty_like(q)
    workspace = attention_kernels.decode_workspace(step.num_seqs, 8, 128, GPU)
    tokens = attn.new_tokens(step, model.cos_sin)
    empty = torch.full(cache.shape, torch.nan, device=GPU).to(cache.dtype)

    def write_and_attend() -> None:
        qk_norm_rope_kv_write(qkv, tokens, cache, attn.kv_scales)
        attention_kernels.decode_attention(q, paged, out, workspace)

    graph, _ = captured(write_and_attend)
    results = []
    for _ in range(REPLAYS):
        cache.copy_(empty)
        graph.replay()
        results.append(out.clone())
    attention_kernels.decode_attention(q, paged, out, workspace)
    for result in results:
        assert relative_error(result, out) < 1e-2

"""Runs the Triton kernels in Triton's interpreter (TRITON_INTERPRET=1), against references."""

from __future__ import annotations

import torch
from model.random_steps import make_step, naive_attention
from model.row_steps import SHARES, num_rows, random_model, rows_of_all_tokens
from model.row_steps import make_step as make_mixed_step
from model.rule_cases import make_case, reference_counts

from dlcore.attention import triton_attention
from dlcore.ops import logits_rules, step_kernels


def check_attention() -> None:
    cases = [
        ([1, 1, 1], [1, 40, 17], 1, 1, 32, 16),
        ([1], [200], 0, 0, 64, 4),
        ([5, 1, 33], [5, 50, 70], 6, 2, 32, 16),
        ([2, 70], [2, 71], 0, 0, 16, 1),
    ]
    for seed, (queries, lengths, tokens, seqs, dim, block_size) in enumerate(cases):
        case = make_step(
            seed=seed, query_lens=queries, seq_lens=lengths, num_heads=6, num_kv_heads=2,
            head_dim=dim, block_size=block_size, extra_tokens=tokens, extra_seqs=seqs,
        )  # fmt: skip
        out = triton_attention.paged_attention(case.q, case.kv_cache, case.step, case.state, 0.2)
        torch.testing.assert_close(
            out[: case.num_tokens].double(), naive_attention(case, 0.2), atol=2e-5, rtol=1e-4
        )


def check_wanted_rows() -> None:
    model = random_model(
        torch.device("cpu"), torch.float32, head_dim=64, attention=triton_attention.paged_attention
    )
    for shares in ("a prompt in parts", "prompt logprobs"):
        step, state = make_mixed_step(model, SHARES[shares])
        with torch.inference_mode():
            rows = model(step, state)[: num_rows(step)]
            expected = rows_of_all_tokens(model, step, state)[: num_rows(step)]
        torch.testing.assert_close(rows, expected, atol=2e-5, rtol=1e-4)


def check_tail_kernels() -> None:
    for seed in range(3):
        case, other = make_case(seed), make_case(seed)
        step_kernels.update_token_counts(case.sampler, case.state)
        rows = case.sampler.row_slots[case.sampler.row_slots >= 0].long()
        assert torch.equal(case.state.token_counts[rows], reference_counts(other)[rows])
        logits = torch.randn(case.sampler.row_slots.shape[0], 64)
        want = logits.clone()
        logits_rules.apply_bias(want, other.sampler)
        step_kernels.apply_bias(logits, case.sampler)
        torch.testing.assert_close(logits, want)
        step_kernels.apply_block_updates(case.step, case.state)
        for index, block in case.block_updates:
            assert case.state.block_tables.view(-1)[index] == block


check_attention()
check_wanted_rows()
check_tail_kernels()

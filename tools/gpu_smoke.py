"""One command that says whether this machine's GPU computes what the CPU does.

    PYTHONPATH=python:tests/py python tools/gpu_smoke.py

Prints a table and exits 1 if a bound is broken. Tiny checkpoints come from tests/oracle (which
needs transformers); without it those rows are left out.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from model.random_steps import make_step, naive_attention  # type: ignore[import-not-found]
from tiny_checkpoints import TinyCheckpoint, tiny_checkpoint  # type: ignore[import-not-found]

from dlcore.attention import triton_attention
from dlcore.llm import LLM
from dlcore.ops.counter_rng import random_bits
from dlcore.ops.logprobs import write_logprobs
from dlcore.ops.sample import random_sample
from dlcore.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
# The median |logprob error| of transformers' own bfloat16 forward (CPU, eager) against its
# float32 one, on these checkpoints and texts: an engine in bfloat16 must be no worse.
BF16_MEDIAN_LOGPROB = {"qwen3": 0.074, "qwen3_tied": 0.095}
OPTIONS: dict[str, Any] = {
    "device": "cuda",
    "max_model_len": 512,
    "num_kv_blocks": 512,
    "max_num_seqs": 16,
}


@dataclass
class Row:
    check: str
    value: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.value <= self.bound


def attention_rows() -> Iterator[Row]:
    cases = {
        "decode": ([1] * 7, [1, 16, 17, 100, 1000, 63, 64], 0),
        "decode, padded bucket": ([1] * 3, [5, 900, 33], 5),
        "mixed": ([1, 130, 7, 64], [700, 130, 300, 65], 60),
    }
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        for name, (queries, lengths, padding) in cases.items():
            case = make_step(
                seed=0, query_lens=queries, seq_lens=lengths, num_heads=8, num_kv_heads=2,
                head_dim=128, extra_tokens=padding, extra_seqs=min(padding, 5), dtype=dtype,
                device="cuda",
            )  # fmt: skip
            out = triton_attention.paged_attention(
                case.q, case.kv_cache, case.step, case.state, 0.09
            )
            got = out[: case.num_tokens].double().cpu()
            error = (got - naive_attention(case, 0.09)).abs().max().item()
            yield Row(f"attention {name} {str(dtype)[6:]}: max error", error, bound)


def sampler_rows() -> Iterator[Row]:
    rng = torch.Generator().manual_seed(0)
    rows, vocab = 32, 5000
    logits = 3 * torch.randn(rows, vocab, generator=rng)
    seeds, positions = torch.arange(rows) * 977, torch.arange(rows, dtype=torch.int32)
    arguments = (
        logits, torch.full((rows,), 0.8), torch.full((rows,), 50, dtype=torch.int32),
        torch.full((rows,), 0.9), torch.full((rows,), 0.01), seeds, positions,
    )  # fmt: skip
    on_cpu = random_sample(*arguments)
    on_gpu = random_sample(*(a.cuda() for a in arguments)).cpu()
    yield Row("sampler: rows that draw another token", (on_cpu != on_gpu).sum().item(), 0)
    bits_cpu = random_bits(seeds, positions, vocab)
    bits_gpu = random_bits(seeds.cuda(), positions.cuda(), vocab).cpu()
    yield Row("counter RNG: bits that differ", (bits_cpu != bits_gpu).sum().item(), 0)
    outputs = []
    for device in ("cpu", "cuda"):
        out = (
            torch.empty(rows, device=device),
            torch.empty(rows, dtype=torch.int32, device=device),
            torch.empty(rows, 20, dtype=torch.int32, device=device),
            torch.empty(rows, 20, device=device),
        )
        write_logprobs(logits.to(device), on_cpu.to(device), *out)
        outputs.append([t.cpu() for t in out])
    yield Row("logprobs: max error", (outputs[0][0] - outputs[1][0]).abs().max().item(), 1e-4)
    yield Row("logprobs: ranks that differ", (outputs[0][1] != outputs[1][1]).sum().item(), 0)


def wrong_prompts(checkpoint: TinyCheckpoint, times: int = 1, **options: Any) -> tuple[int, LLM]:
    llm = LLM(str(checkpoint.folder), dtype="float32", **{**OPTIONS, **options})
    prompts = [{"prompt_token_ids": p.prompt_ids} for p in checkpoint.prompts]
    wrong = 0
    for _ in range(times):
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
        wrong += sum(
            o.outputs[0].token_ids != p.completion_ids
            for o, p in zip(outputs, checkpoint.prompts, strict=True)
        )
    return wrong, llm


def engine_rows() -> Iterator[Row]:
    torch.backends.cuda.matmul.allow_tf32 = False
    variants: dict[str, dict[str, Any]] = {
        "captured": {},
        "chunks of 7": {"max_num_batched_tokens": 7, "max_num_seqs": 7},
        "prefix hits": {"times": 2},
        "few KV blocks": {"num_kv_blocks": 40},
        "one sequence": {"max_num_seqs": 1},
        "enforce_eager": {"enforce_eager": True},
    }
    for family in ("qwen3", "qwen3_tied"):
        checkpoint = tiny_checkpoint(family)
        for name, options in variants.items():
            wrong, llm = wrong_prompts(checkpoint, **options)
            yield Row(f"{family} float32, {name}: prompts unlike the golden", wrong, 0)
            llm.close()
        yield bfloat16_row(family, checkpoint)


def bfloat16_row(family: str, checkpoint: TinyCheckpoint) -> Row:
    """Teacher forced: the log-probabilities of golden text, bf16 on the GPU, float32 on the CPU."""
    texts = [{"prompt_token_ids": p.prompt_ids + p.completion_ids} for p in checkpoint.prompts]
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    scored = []
    for options in ({"dtype": "bfloat16"}, {"dtype": "float32", "device": "cpu"}):
        with LLM(str(checkpoint.folder), **{**OPTIONS, **options}) as llm:
            scored.append(llm.generate(texts, params, use_tqdm=False))
    deltas = []
    for text, a, b in zip(texts, *scored, strict=True):
        for token, x, y in zip(
            text["prompt_token_ids"], a.prompt_logprobs or (), b.prompt_logprobs or (), strict=True
        ):
            if x is not None and y is not None:
                deltas.append(abs(x[token].logprob - y[token].logprob))
    value = statistics.median(deltas)
    return Row(f"{family} bfloat16: median |logprob error|", value, BF16_MEDIAN_LOGPROB[family])


def main() -> int:
    sections: list[Callable[[], Iterator[Row]]] = [attention_rows, sampler_rows, engine_rows]
    failed = 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for section in sections:
        start = time.perf_counter()
        for row in section():
            failed += not row.ok
            mark = "ok  " if row.ok else "FAIL"
            print(f"{mark}  {row.check:64s} {row.value:10.3g}  <= {row.bound:g}", flush=True)
        print(f"      {section.__name__}: {time.perf_counter() - start:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

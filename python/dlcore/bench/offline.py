"""Latency and throughput of an engine in this process.

The figures and how they are taken:
- TPOT at batch b: (seconds for `output_len` tokens - seconds for one token) / (output_len - 1),
  b sequences at once;
- TTFT: one prompt of `ttft_len` tokens until its first token, one request right after the other
  for at least `busy_s`, as a GPU needs time to find its clock at its power limit; and each
  after `idle_s` without work, as a lone request finds a GPU that has not slowed down;
- prefill: tokens a second over a batch of prompts with one token of answer each;
- mixed: answer tokens a second, all requests at once, lengths drawn at random; over `repeats`
  draws, as one alone moves the figure by some 2%. A seed's draws are the same in every run.
Prompts are random token ids, new every time, so that no prefix cache helps.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dlcore.llm import LLM
from dlcore.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflinePlan:
    batch_sizes: tuple[int, ...] = (1, 8, 64, 256)
    input_len: int = 128
    output_len: int = 257
    ttft_len: int = 4096
    busy_s: float = 2.0
    idle_s: float = 1.0
    prefill_requests: int = 32
    prefill_len: int = 2048
    mixed_requests: int = 512
    mixed_input: tuple[int, int] = (64, 1024)
    mixed_output: tuple[int, int] = (64, 512)
    repeats: int = 3
    seed: int = 0

    def fitted(self, *, max_model_len: int, max_num_seqs: int, kv_tokens: int) -> OfflinePlan:
        """The same plan with every length and batch cut to what the engine can hold."""
        output_len = max(2, min(self.output_len, max_model_len // 2))
        input_len = max(1, min(self.input_len, max_model_len - output_len))
        room = kv_tokens // (input_len + output_len)
        prefill_len = min(self.prefill_len, max_model_len - 1)
        mixed_in = _clip(self.mixed_input, max_model_len // 2)
        return replace(
            self,
            batch_sizes=tuple(b for b in self.batch_sizes if b <= min(max_num_seqs, room)),
            input_len=input_len,
            output_len=output_len,
            ttft_len=min(self.ttft_len, max_model_len - 1),
            prefill_len=prefill_len,
            prefill_requests=max(1, min(self.prefill_requests, kv_tokens // prefill_len)),
            mixed_input=mixed_in,
            mixed_output=_clip(self.mixed_output, max_model_len - mixed_in[1]),
        )


# A plan that a small model finishes on a few CPU cores in about a minute.
CPU_PLAN = OfflinePlan(
    batch_sizes=(1, 8, 64),
    output_len=65,
    ttft_len=512,
    prefill_requests=8,
    prefill_len=256,
    mixed_requests=32,
    mixed_input=(16, 128),
    mixed_output=(16, 64),
)


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    value: float
    unit: str
    how: str


class OfflineBench:
    def __init__(self, llm: LLM, plan: OfflinePlan) -> None:
        self._llm = llm
        self._plan = plan
        self._rng = random.Random(plan.seed)

    def run(self, progress: Callable[[str], None] = lambda _: None) -> Iterator[Figure]:
        plan = self._plan
        progress("warm-up")
        self._seconds([plan.input_len], [2])
        for batch in plan.batch_sizes:
            progress(f"TPOT at batch {batch}")
            yield self._tpot(batch)
        progress("TTFT")
        yield self._ttft()
        yield self._ttft_idle()
        progress("prefill")
        yield self._prefill()
        progress("mixed load")
        yield self._mixed()

    def _tpot(self, batch: int) -> Figure:
        plan = self._plan
        inputs = [plan.input_len] * batch
        seconds = statistics.median(
            self._seconds(inputs, [plan.output_len] * batch) - self._seconds(inputs, [1] * batch)
            for _ in range(plan.repeats)
        )
        step_ms = 1e3 * seconds / (plan.output_len - 1)
        how = f"{plan.input_len} in, {plan.output_len} out"
        return Figure(f"tpot_b{batch}", step_ms, "ms", how)

    def _ttft(self) -> Figure:
        times: list[float] = []
        while len(times) < self._plan.repeats or sum(times) < self._plan.busy_s:
            times.append(self._seconds([self._plan.ttft_len], [1]))
        how = f"{self._plan.ttft_len} in, back to back"
        return Figure("ttft", 1e3 * statistics.median(times), "ms", how)

    def _ttft_idle(self) -> Figure:
        plan = self._plan
        times = []
        for _ in range(plan.repeats):
            time.sleep(plan.idle_s)
            times.append(self._seconds([plan.ttft_len], [1]))
        how = f"{plan.ttft_len} in, {plan.idle_s:g} s idle before"
        return Figure("ttft_idle", 1e3 * statistics.median(times), "ms", how)

    def _prefill(self) -> Figure:
        plan = self._plan
        inputs = [plan.prefill_len] * plan.prefill_requests
        seconds = statistics.median(
            self._seconds(inputs, [1] * len(inputs)) for _ in range(plan.repeats)
        )
        how = f"{plan.prefill_requests} x {plan.prefill_len} in"
        return Figure("prefill", sum(inputs) / seconds, "tokens/s", how)

    def _mixed(self) -> Figure:
        plan = self._plan
        lengths = random.Random(plan.seed)
        draws = []  # of each: answer tokens, seconds
        for _ in range(plan.repeats):
            inputs = [lengths.randint(*plan.mixed_input) for _ in range(plan.mixed_requests)]
            outputs = [lengths.randint(*plan.mixed_output) for _ in range(plan.mixed_requests)]
            draws.append((sum(outputs), self._seconds(inputs, outputs)))
        tokens, seconds = (sum(column) for column in zip(*draws, strict=True))
        each = ", ".join(f"{tokens / seconds:,.0f}" for tokens, seconds in draws)
        how = (
            f"{plan.mixed_requests} requests, {plan.mixed_input[0]}-{plan.mixed_input[1]} in, "
            f"{plan.mixed_output[0]}-{plan.mixed_output[1]} out; draws: {each}"
        )
        return Figure("mixed", tokens / seconds, "tokens/s", how)

    def _seconds(self, input_lens: Sequence[int], output_lens: Sequence[int]) -> float:
        vocab = self._llm.vocab_size
        prompts = [
            {"prompt_token_ids": [self._rng.randrange(vocab) for _ in range(length)]}
            for length in input_lens
        ]
        params = [
            SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
            for length in output_lens
        ]
        start = time.perf_counter()
        self._llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start


def _clip(bounds: tuple[int, int], most: int) -> tuple[int, int]:
    high = max(1, min(bounds[1], most))
    return min(bounds[0], high), high

"""What the figures of `dlcore bench` say, of an engine whose time is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from dlcore.bench import offline
from dlcore.bench.offline import CPU_PLAN, OfflineBench
from dlcore.llm import LLM
from dlcore.sampling_params import SamplingParams

PLAN = replace(CPU_PLAN, busy_s=1.0)


class Clock:
    """Stands in for the module time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class TimedLLM:
    """Takes `prompt_s` for each prompt token and `step_s` for each step of all answers."""

    vocab_size = 1000

    def __init__(self, clock: Clock, prompt_s: float, step_s: float) -> None:
        self._clock, self._prompt_s, self._step_s = clock, prompt_s, step_s
        self.lengths: list[list[tuple[int, int]]] = []  # in and out, by list

    def generate(
        self, prompts: Sequence[dict[str, Any]], params: Sequence[SamplingParams], *, use_tqdm: bool
    ) -> None:
        ins = [len(prompt["prompt_token_ids"]) for prompt in prompts]
        outs = [cast(int, p.max_tokens) for p in params]
        self.lengths.append(list(zip(ins, outs, strict=True)))
        self._clock.now += self._prompt_s * sum(ins) + self._step_s * (max(outs) - 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(offline, "time", clock)
    return clock


def run(llm: TimedLLM, seed: int = 0) -> dict[str, float]:
    bench = OfflineBench(cast(LLM, llm), replace(PLAN, seed=seed))
    return {figure.name: figure.value for figure in bench.run()}


def test_figures_are_the_engines_times(clock: Clock) -> None:
    llm = TimedLLM(clock, prompt_s=1e-6, step_s=3e-3)
    figures = run(llm)
    for batch in PLAN.batch_sizes:
        assert figures[f"tpot_b{batch}"] == pytest.approx(3.0)
    assert figures["ttft"] == pytest.approx(1e-3 * PLAN.ttft_len)
    assert figures["ttft_idle"] == pytest.approx(1e-3 * PLAN.ttft_len)
    assert figures["prefill"] == pytest.approx(1e6)
    mixed = llm.lengths[-PLAN.repeats :]
    seconds = sum(
        1e-6 * sum(i for i, _ in draw) + 3e-3 * (max(o for _, o in draw) - 1) for draw in mixed
    )
    assert figures["mixed"] == pytest.approx(sum(o for draw in mixed for _, o in draw) / seconds)


def test_mixed_lengths_are_the_seeds_whatever_else_ran(clock: Clock) -> None:
    fast, slow = TimedLLM(clock, 1e-6, 1e-3), TimedLLM(clock, 1e-4, 1e-3)
    run(fast)
    run(slow)
    assert len(fast.lengths) > len(slow.lengths)  # of prompts for TTFT
    assert fast.lengths[-PLAN.repeats :] == slow.lengths[-PLAN.repeats :]
    other = TimedLLM(clock, 1e-6, 1e-3)
    run(other, seed=1)
    assert other.lengths[-PLAN.repeats :] != fast.lengths[-PLAN.repeats :]

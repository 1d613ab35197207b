"""What figures are compared with: vLLM 0.25.1's on an H100 (2026-11-20), targets and floors.

docs/performance.md says how they were measured and made.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Baseline:
    vllm: float
    target: float
    floor: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineBaseline:
    vllm: float  # output tokens/s
    targets: dict[str, float] = field(default_factory=dict)  # by name of tools/loadgen.py's row


HIGHER_IS_BETTER = {"prefill", "mixed", "out_tok_s"}
LATENCIES = ("ttft_p50", "tpot_p50", "itl_p99")  # of tools/loadgen.py's row, ms

# By figure of `dlcore bench`: s, ms, and tokens/s.
OFFLINE: dict[str, dict[str, Baseline]] = {
    "qwen3-0.6b": {
        "start": Baseline(66, 15),
        "tpot_b1": Baseline(1.59, 0.80, 0.39),
        "tpot_b8": Baseline(1.74, 0.95, 0.47),
        "tpot_b64": Baseline(2.77, 1.7, 1.01),
        "tpot_b256": Baseline(5.23, 3.8, 2.87),
        "ttft": Baseline(17.8, 14),
        "prefill": Baseline(383_002, 400_000),
        "mixed": Baseline(24_082, 27_500, 31_000),
    },
    "qwen3-8b": {
        "start": Baseline(57, 20),
        "tpot_b1": Baseline(6.79, 5.7, 4.99),
        "tpot_b8": Baseline(7.02, 5.9, 5.1),
        "tpot_b64": Baseline(8.21, 7.0, 5.8),
        "tpot_b256": Baseline(12.82, 10.8, 8.2),
        "ttft": Baseline(104, 95),
        "prefill": Baseline(42_608, 44_000, 53_000),
        "mixed": Baseline(8_729, 9_600, 10_700),
    },
}

# s from the start of `dlcore serve` until it is ready.
READY = {"qwen3-0.6b": Baseline(96, 20), "qwen3-8b": Baseline(111, 25)}


def _under_load(vllm: float, tokens: float, *latencies: float) -> OnlineBaseline:
    """latencies: of LATENCIES, as many as have a target."""
    targets = {"out_tok_s": tokens, **dict(zip(LATENCIES, latencies, strict=False))}
    return OnlineBaseline(vllm=vllm, targets=targets)


# By clients in a closed loop, 512 tokens in, 256 out.
ONLINE: dict[str, dict[int, OnlineBaseline]] = {
    "qwen3-0.6b": {
        1: _under_load(446, 1_000, 8, 0.95),
        16: _under_load(6_509, 12_000),
        64: _under_load(14_452, 21_000),
        256: _under_load(15_787, 24_000, 250, 10, 25),
    },
    "qwen3-8b": {
        1: _under_load(144, 172, 16, 5.8),
        16: _under_load(1_926, 2_250),
        64: _under_load(5_176, 5_700),
        256: _under_load(7_968, 9_000, 1_200, 22, 60),
    },
}

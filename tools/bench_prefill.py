"""Times a layer's products at prefill sizes, own kernels and the library taking turns.

python3 tools/bench_prefill.py [--shape 8b] [--tokens 4096 8192] [--seconds 0.4] [--rounds 2]

Each runs for a while before and while it is timed: under load a GPU draws its power limit and
lowers its clock, and a single call on a cool card says little about a long prefill. Printed: us a
product, TFLOP/s, and clock and power meanwhile. Needs nvidia-ml-py.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from kernel_timing import captured
from torch import Tensor
from torch.nn import functional

from dlcore.ops import kernels
from dlcore.ops.wide_linear import wide_linear, wide_linear_before_norm

NUM_WEIGHTS = 6  # in turn: together larger than L2
EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    hidden: int
    heads: int  # of q, k and v, of 128
    q_heads: int
    inner: int


SHAPES = {
    "0.6b": Shape(hidden=1024, heads=32, q_heads=16, inner=3072),
    "8b": Shape(hidden=4096, heads=48, q_heads=32, inner=12288),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    flops: float
    run: Callable[[Tensor], object]  # with one of the weights
    weights: list[Tensor]

    def run_all(self) -> None:
        for weight in self.weights:
            self.run(weight)


def bf16(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.empty(*shape, device="cuda", dtype=torch.bfloat16).normal_(0, scale)


def cases(shape: Shape, num_tokens: int) -> Iterator[list[Case]]:
    """For each product the ways to compute it, and what follows it in a layer."""
    hidden = shape.hidden
    residual = bf16(num_tokens, hidden)
    ways: dict[str, Callable[[Tensor, Tensor], object]]
    for name, rows, k in (
        ("qkv", shape.heads * 128, hidden),
        ("o", hidden, shape.q_heads * 128),
        ("gate_up", 2 * shape.inner, hidden),
        ("down", hidden, shape.inner),
    ):
        if name == "qkv":
            ways = {"library": functional.linear, "own": wide_linear}
        elif name == "gate_up":
            ways = {
                "library, SwiGLU": lambda x, w: kernels.silu_and_mul(functional.linear(x, w)),
                "own with SwiGLU": functools.partial(wide_linear, swiglu=True),
            }
        else:
            ways = {  # the stream halves each time, so that it stays finite
                "library, RMSNorm": lambda x, w: kernels.rms_norm(
                    residual.addmm_(x, w.t(), beta=0.5), None, EPS
                ),
                "own with RMSNorm's part": lambda x, w: wide_linear_before_norm(x, w, residual),
            }
        x, weights = bf16(num_tokens, k), [bf16(rows, k, scale=0.02) for _ in range(NUM_WEIGHTS)]
        yield [
            Case(
                name=f"{name} {num_tokens}x{rows}x{k} {way}",
                flops=2.0 * num_tokens * rows * k,
                run=functools.partial(run, x),
                weights=weights,
            )
            for way, run in ways.items()
        ]


@dataclass(frozen=True, slots=True)
class Timing:
    us: float  # a replay
    mhz: int
    watts: float


def sustained(graph: torch.cuda.CUDAGraph, seconds: float) -> Timing:
    """After a quarter of `seconds` of the same."""
    graph.replay()
    torch.cuda.synchronize()
    start = time.perf_counter()
    graph.replay()
    torch.cuda.synchronize()
    replays = max(1, int(seconds / (time.perf_counter() - start)))
    for _ in range(replays // 4):
        graph.replay()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(replays):
        graph.replay()
    mhz, milliwatts = torch.cuda.clock_rate(), torch.cuda.power_draw()
    torch.cuda.synchronize()
    us = (time.perf_counter() - start) * 1e6 / replays
    return Timing(us, mhz, milliwatts / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--tokens", type=int, nargs="*", default=[4096, 8192])
    parser.add_argument("--seconds", type=float, default=0.4, help="of each timing")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    print(f"{'product':<52}{'us':>10}{'TFLOP/s':>10}{'MHz':>8}{'W':>7}")
    for num_tokens in args.tokens:
        for ways in cases(SHAPES[args.shape], num_tokens):
            graphs = [captured(case.run_all)[0] for case in ways]
            for _ in range(args.rounds):
                for case, graph in zip(ways, graphs, strict=True):
                    timing = sustained(graph, args.seconds)
                    us = timing.us / NUM_WEIGHTS
                    line = f"{case.name:<52}{us:>10.1f}{case.flops / us / 1e6:>10.0f}"
                    print(f"{line}{timing.mhz:>8}{timing.watts:>7.0f}")


if __name__ == "__main__":
    main()

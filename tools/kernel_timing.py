"""Kernels' launches as a CUDA graph, and their time over rotating inputs larger than L2."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

L2_BYTES = 50e6

Outputs = TypeVar("Outputs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    op: str
    shape: str
    run: Callable[[int], object]  # the i-th launch, over the i-th set of inputs
    num_sets: int
    num_bytes: float = 0.0
    flops: float = 0.0
    launches: int = 1  # per run


def sets_for(num_bytes: float) -> int:
    return max(2, min(64, int(3 * L2_BYTES / num_bytes) + 1))


def new_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@functools.cache
def _capture_stream() -> torch.cuda.Stream:
    """One for all: the library keeps a workspace of 32 MiB for each stream."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def captured(run: Callable[[], Outputs]) -> tuple[torch.cuda.CUDAGraph, Outputs]:
    """`run` as a CUDA graph, and what its replays write. It runs once before, to load kernels."""
    torch.cuda.synchronize()  # the inputs were made on another stream
    stream = _capture_stream()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = run()
    return graph, outputs


def time_us(case: Case, repeats: int = 15) -> float:
    runs = max(case.num_sets, 20 if case.launches == 1 else 1)

    def run_all() -> None:
        for i in range(runs):
            case.run(i % case.num_sets)

    graph, _ = captured(run_all)
    times = []
    for i in range(repeats + 3):
        start, end = new_event(), new_event()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end) * 1e3 / runs)
    return float(statistics.median(times))

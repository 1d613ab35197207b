"""A model and its sampler as CUDA graphs, one or two per StepKey, launched by C++.

Greedy decode, the commonest step, is one graph. For any other key the model's and the sampler's are
separate: model graphs differ by token and sequence bucket, sampler graphs by sequence bucket and
variant. Between them lie two static buffers: the hidden state of the wanted rows, and a copy of the
arena's per-row fields (whose place in the arena depends on the token bucket, which the sampler's
graph must not).
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlcore import _core
from dlcore.layers.sampler import sample_rows
from dlcore.models import CausalLM
from dlcore.step_buffers import Arenas, DeviceState, LayerReport
from dlcore.step_limits import MIXED_STEP_RANGE

VARIANTS = ("greedy", "random", "full")
DECODE_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
SMALL_MIXED_TOKENS = (64, 96, 128, 192)
MIXED_STEPS_PER_OCTAVE = 4  # above them: a step wastes at most a fifth of its work on padding
# Sequence buckets of mixed steps below the largest: each costs a graph and saves rows of logits.
# Steps of many tokens are prompts of few sequences, or so long that the rows do not matter.
FEW_SEQS = 16
SOME_SEQS = (FEW_SEQS, 64, 256)
SOME_SEQS_TOKENS = MIXED_STEP_RANGE[1]  # steps of at most so many tokens have all of these
# Shorter steps tell of no layer: they are over before a reader knows what to ask for.
MIN_REPORTED_TOKENS = 512


def decode_sizes(max_num_seqs: int) -> list[int]:
    """Sequence buckets up to and including `max_num_seqs`, ascending."""
    sizes = [n for n in DECODE_SIZES if n < max_num_seqs]
    sizes += range(DECODE_SIZES[-1] + 64, max_num_seqs, 64)
    return [*sizes, max_num_seqs]


def mixed_sizes(max_num_batched_tokens: int, seq_sizes: list[int]) -> list[tuple[int, int]]:
    """(token bucket, sequence bucket) of mixed steps; each sequence bucket is in `seq_sizes`."""
    tokens = [max_num_batched_tokens, *SMALL_MIXED_TOKENS]
    octave = 256
    while octave < max_num_batched_tokens:
        step = octave // MIXED_STEPS_PER_OCTAVE
        tokens += range(octave, 2 * octave, step)
        octave *= 2
    tokens = [t for t in tokens if t <= max_num_batched_tokens]
    largest = seq_sizes[-1]

    def bucket(num_seqs: int) -> int:
        return next(n for n in seq_sizes if n >= min(num_seqs, largest))

    def seq_counts(num_tokens: int) -> tuple[int, ...]:
        some = SOME_SEQS if num_tokens <= SOME_SEQS_TOKENS else (FEW_SEQS,)
        return (*(min(n, num_tokens) for n in some), num_tokens)

    return sorted({(t, bucket(seqs)) for t in tokens for seqs in seq_counts(t)})


# By device, the streams of engines that are gone. cuBLAS has a workspace for each stream it saw,
# and graphs captured there use it: engines at work at the same time must not share a stream, and
# a new one for each that follows another would leave 32 MiB behind.
_spare_streams: defaultdict[int, list[torch.cuda.Stream]] = defaultdict(list)


def _take_stream() -> torch.cuda.Stream:
    spare = _spare_streams[torch.cuda.current_device()]
    return spare.pop() if spare else torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _give_back(
    stream: torch.cuda.Stream, graphs: list[torch.cuda.CUDAGraph], spare: list[torch.cuda.Stream]
) -> None:
    graphs.clear()  # first: with a graph, torch may free the workspace of the stream it is from
    spare.append(stream)


@dataclass(kw_only=True)
class StepCapturer:
    """Captures graphs into one shared memory pool and keeps them alive: C++ holds raw handles."""

    model: CausalLM
    arenas: Arenas
    state: DeviceState
    rows: Tensor  # [max_num_seqs, hidden]: from a model graph to the sampler graph after it
    row_fields: Tensor  # int32: the copy of StepBuffers.row_fields
    report: LayerReport | None  # of a node that lends KV
    pool: Any = field(default_factory=torch.cuda.graph_pool_handle)
    stream: torch.cuda.Stream = field(default_factory=_take_stream)
    graphs: list[torch.cuda.CUDAGraph] = field(default_factory=list)

    def __post_init__(self) -> None:
        spare = _spare_streams[torch.cuda.current_device()]
        gone = weakref.finalize(self, _give_back, self.stream, self.graphs, spare)
        gone.atexit = False  # a core may still launch them

    @classmethod
    def create(
        cls,
        model: CausalLM,
        arenas: Arenas,
        state: DeviceState,
        max_num_seqs: int,
        report: LayerReport | None = None,
    ) -> StepCapturer:
        weight = next(iter(model.weight_map().values()))
        key = _core.StepKey("mixed", "full", max_num_seqs, max_num_seqs)
        size = arenas.step_buffers(key).row_fields.shape[0]
        return cls(
            model=model,
            arenas=arenas,
            state=state,
            rows=torch.zeros(
                max_num_seqs, model.hidden_size, dtype=weight.dtype, device=weight.device
            ),
            row_fields=torch.zeros(size, dtype=torch.int32, device=weight.device),
            report=report,
        )

    def capture_all(
        self, core: _core.Engine, max_num_batched_tokens: int, seq_sizes: list[int]
    ) -> None:
        """Captures every bucket, largest first, and registers each key with `core`."""
        samplers = {
            (size, variant): self.capture(self.sampler_step(size, variant))
            for size in reversed(seq_sizes)
            for variant in reversed(VARIANTS)
        }
        buckets = [("mixed", t, s) for t, s in mixed_sizes(max_num_batched_tokens, seq_sizes)]
        buckets += [("decode", s, s) for s in seq_sizes]
        for kind, tokens, seqs in sorted(buckets, key=lambda b: b[1], reverse=True):
            model_graph = self.capture(self.model_step(kind, tokens, seqs))
            for variant in VARIANTS:
                graphs = [model_graph, samplers[seqs, variant]]
                if (kind, variant) == ("decode", "greedy"):
                    graphs = [self.capture(self.greedy_decode_step(seqs))]
                core.add_graphs(_core.StepKey(kind, variant, tokens, seqs), graphs)
        torch.cuda.synchronize()

    def greedy_decode_step(self, num_seqs: int) -> Callable[[], None]:
        key = _core.StepKey("decode", "greedy", num_seqs, num_seqs)
        step, sampler = self.arenas.step_buffers(key), self.arenas.sampler_buffers(key)

        def run() -> None:
            sample_rows(self.model, self.model(step, self.state), sampler, self.state)

        return run

    def model_step(self, kind: str, num_tokens: int, num_seqs: int) -> Callable[[], None]:
        # "full" so that row_fields covers every variant's fields.
        key = _core.StepKey(kind, "full", num_tokens, num_seqs)
        report = self.report if num_tokens >= MIN_REPORTED_TOKENS else None
        step = self.arenas.step_buffers(key, report)
        row_fields = self.row_fields[: step.row_fields.shape[0]]

        def run() -> None:
            row_fields.copy_(step.row_fields)
            self.rows[:num_seqs].copy_(self.model(step, self.state))

        return run

    def sampler_step(self, num_seqs: int, variant: str) -> Callable[[], None]:
        key = _core.StepKey("mixed", variant, num_seqs, num_seqs)
        sampler = self.arenas.sampler_buffers(key, self.row_fields)

        def run() -> None:
            sample_rows(self.model, self.rows[:num_seqs], sampler, self.state)

        return run

    def capture(self, run: Callable[[], None]) -> int:
        """The raw cudaGraphExec_t of `run`, which is run once before: kernels compile and
        libraries allocate at first use, which capturing forbids."""
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            run()
            self.stream.synchronize()
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
        graph.instantiate()
        self.graphs.append(graph)
        return int(graph.raw_cuda_graph_exec())

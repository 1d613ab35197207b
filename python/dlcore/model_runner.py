"""Puts a model, its buffers and the core together: how a step runs, and how much KV fits."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlcore import _core
from dlcore.layers.sampler import sample_rows
from dlcore.models import CausalLM
from dlcore.ops.kernels import argmax_workspace
from dlcore.step_buffers import (
    Arenas,
    DeviceState,
    LayerReport,
    SamplerBuffers,
    StepBuffers,
    lazy_zeros,
)

MAX_CACHED_KEYS = 1024


@dataclass(slots=True, kw_only=True)
class EagerStep:
    """Runs a step in Python: the CPU, and a GPU with enforce_eager. Called by the engine thread."""

    model: CausalLM
    arenas: Arenas
    state: DeviceState
    report: LayerReport | None = None  # of a node that lends KV
    # Making views costs more than a small model's layer, so they are kept per key.
    views: OrderedDict[_core.StepKey, tuple[StepBuffers, SamplerBuffers]] = field(
        default_factory=OrderedDict
    )

    def __call__(self, key: _core.StepKey) -> None:
        device = self.arenas.input.device
        if device.type == "cpu":
            self._run(key)
            return
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # the engine's copies run on a stream of its own
            self._run(key)
            torch.cuda.synchronize()

    def _run(self, key: _core.StepKey) -> None:
        with torch.inference_mode():
            step, sampler = self._buffers(key)
            rows = self.model(step, self.state)
            sample_rows(self.model, rows, sampler, self.state)

    def _buffers(self, key: _core.StepKey) -> tuple[StepBuffers, SamplerBuffers]:
        views = self.views.get(key)
        if views is None:
            views = (self.arenas.step_buffers(key, self.report), self.arenas.sampler_buffers(key))
            self.views[key] = views
            if len(self.views) > MAX_CACHED_KEYS:
                self.views.popitem(last=False)
        return views


def allocate_state(
    options: _core.EngineOptions, kv_caches: tuple[Tensor, ...], device: torch.device
) -> DeviceState:
    """Zeroed state for `options`, each tensor with its scratch row (see DeviceState)."""

    def zeros(*shape: int) -> Tensor:
        return lazy_zeros(shape, torch.int32, device)

    max_blocks = -(-options.max_model_len // options.block_size)
    return DeviceState(
        block_tables=zeros(options.max_num_seqs + 1, max_blocks),
        last_tokens=zeros(options.max_num_seqs + 1),
        token_counts=zeros(options.max_num_seqs + 1, options.vocab_size),
        argmax_space=argmax_workspace(options.max_num_seqs, device),
        kv_caches=kv_caches,
    )


def reset_state(state: DeviceState, arenas: Arenas) -> None:
    """Forgets what warm-up steps wrote."""
    tensors = (
        state.block_tables, state.last_tokens, state.token_counts, arenas.input, arenas.output
    )  # fmt: skip
    for tensor in (*tensors, *state.kv_caches):
        tensor.zero_()

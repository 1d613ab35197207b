"""The last thing a layer does in a step that writes prompts: it says that its KV is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.step_buffers import StepBuffers


def report_layer(step: StepBuffers, layers_done: int) -> None:
    """Lets other nodes read layers [0, layers_done) of the step's KV while the rest is computed.

    Nothing where nobody could: only a prefill node's steps with prompts have `report_layers`.
    """
    if step.report_layers is not None:
        step.report_layers(step.header, layers_done)


@dataclass(frozen=True, slots=True)
class HostReport:
    """For steps on the engine thread. report: _core.Engine.report_layers"""

    report: Callable[[int], None]

    def __call__(self, header: Tensor, layers_done: int) -> None:
        self.report(layers_done)


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """For captured steps: a kernel writes the layer word, which the engine thread looks at.

    word: int64 [1], pinned: a GPU writes host memory that CUDA allocated at its host address.
    """

    word: Tensor

    @classmethod
    def create(cls, device: torch.device) -> DeviceReport | None:
        """None where the kernel does not run: prompts then move when a step is over."""
        if not kernels.runs_on(device):
            return None
        return cls(torch.zeros(1, dtype=torch.int64, pin_memory=True))

    def __call__(self, header: Tensor, layers_done: int) -> None:
        kernels.report_layer(header, self.word, layers_done)

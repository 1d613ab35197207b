"""Models by Hugging Face model_type: `models/<model_type>.py` holds one family, whole.

Adding a model is adding a file with a `build` function of the signature `ModelBuilder`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from dlcore.attention import AttentionBackend
from dlcore.config import ConfigError, ModelConfig
from dlcore.step_buffers import DeviceState, StepBuffers


class CausalLM(Protocol):
    """What the runner needs of a model. Forward passes are capturable on a GPU."""

    hidden_size: int

    @property
    def lm_head_weight(self) -> Tensor:
        """[vocab_size, hidden]: its product with rows is what `compute_logits` gives."""
        ...

    def __call__(self, step: StepBuffers, state: DeviceState) -> Tensor:
        """Runs one step and returns the normed hidden state of every wanted row: [S, hidden]."""
        ...

    def compute_logits(self, rows: Tensor) -> Tensor:
        """rows: [S, hidden] -> [S, vocab_size]."""
        ...

    def weight_map(self) -> Mapping[str, Tensor]:
        """Checkpoint tensor name -> the parameter (or the rows of one) it fills."""
        ...

    def weights_loaded(self) -> None:
        """Called when weight_map's tensors are filled, before the first step. What it makes of them
        computes the same."""
        ...

    def ignored_weights(self) -> frozenset[str]:
        """Names a checkpoint may hold without need."""
        ...

    def cache_groups(self, block_size: int) -> list[tuple[str, int, int, int]]:
        """(kind, num_layers, bytes per block per layer, window), as _core.EngineOptions has it."""
        ...

    def allocate_kv_caches(self, num_blocks: int, block_size: int) -> tuple[Tensor, ...]:
        """DeviceState.kv_caches for `num_blocks` blocks and the scratch block."""
        ...


class ModelBuilder(Protocol):
    def __call__(
        self, config: ModelConfig, attention: AttentionBackend, device: torch.device
    ) -> CausalLM:
        """The model on `device` in config.dtype, its weights not yet filled."""
        ...


def model_types() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def build_model(config: ModelConfig, attention: AttentionBackend, device: torch.device) -> CausalLM:
    if config.model_type not in model_types():
        raise ConfigError(
            "model",
            f"model_type {config.model_type!r} is not known; dlcore serves "
            f"{', '.join(model_types())}",
        )
    build: ModelBuilder = importlib.import_module(f"{__name__}.{config.model_type}").build
    return build(config, attention, device)

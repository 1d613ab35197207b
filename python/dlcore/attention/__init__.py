"""Paged attention, one backend per file. A backend serves any mix of prefill chunks and decodes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dlcore.attention import hopper_attention, torch_attention, triton_attention
from dlcore.config import ConfigError
from dlcore.step_buffers import DeviceState, Queries


class AttentionBackend(Protocol):
    def __call__(
        self,
        q: Tensor,
        kv_cache: Tensor,
        queries: Queries,
        state: DeviceState,
        scale: float,
        kv_scales: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of each query token over its sequence's context.

        q: [T, Hq, D], the tokens of sequence i at query_start_loc[i] .. query_start_loc[i + 1],
        the last of them at position seq_lens[i] - 1. kv_cache: [blocks, 2, Hk, block_size, D],
        already holding this step's k and v, of q's dtype, or E4M3 with kv_scales [2, Hk] float32
        (see quant.fp8); sequence i's blocks are row `seq_slots[i]` of
        `state.block_tables`. Returns [T, Hq, D]; what padding tokens get is meaningless.
        """
        ...


def choose_attention(name: str, device: torch.device) -> AttentionBackend:
    """`name`: EngineConfig.attention_backend. "auto" takes the fastest that runs on `device`."""
    if device.type == "cpu":
        if name == "triton":
            raise ConfigError("attention_backend", "triton needs a GPU; use auto or torch")
        return torch_attention.paged_attention
    if name == "torch":
        raise ConfigError("attention_backend", "torch runs on the CPU only; use auto or triton")
    if name == "auto" and hopper_attention.available(device):
        return hopper_attention.HopperAttention.create(device)
    if not triton_attention.available():
        raise ConfigError("attention_backend", "triton is not installed; pip install triton")
    return triton_attention.paged_attention

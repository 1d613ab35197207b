"""Rotary position embeddings: the table of cosines and sines of every position.

Source of the scalings: the published configs ("rope_scaling") of the models that use them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dlcore.config import ConfigError


def build_cos_sin(
    rope: Mapping[str, Any], rotary_dim: int, num_positions: int, device: torch.device
) -> Tensor:
    """[num_positions, rotary_dim] float32: the cosines of rotary_dim / 2 angles, then their sines.

    rope: model_folder.rope_parameters' result.
    """
    inv_freq, attention_factor = _frequencies(rope, rotary_dim)
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = positions[:, None] * inv_freq[None, :]
    table = torch.cat([angles.cos(), angles.sin()], dim=-1) * attention_factor
    return table.to(device)


def _frequencies(rope: Mapping[str, Any], dim: int) -> tuple[Tensor, float]:
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    inv_freq = 1.0 / (float(rope["rope_theta"]) ** exponents)
    rope_type = rope["rope_type"]
    if rope_type == "default":
        return inv_freq, 1.0
    if rope_type == "linear":
        return inv_freq / _number(rope, "factor"), 1.0
    if rope_type == "yarn":
        return _yarn(rope, inv_freq, dim)
    if rope_type == "llama3":
        return _llama3(rope, inv_freq), 1.0
    raise ConfigError(
        "model", f"rope_scaling type {rope_type!r} is none of default, linear, yarn, llama3"
    )


def _yarn(rope: Mapping[str, Any], inv_freq: Tensor, dim: int) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): interpolate slow frequencies, keep fast ones, ramp between."""
    factor = _number(rope, "factor")
    original = _number(rope, "original_max_position_embeddings")
    theta = float(rope["rope_theta"])

    def dim_of(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dim_of(float(rope.get("beta_fast") or 32))
    high = dim_of(float(rope.get("beta_slow") or 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    scaled = inv_freq / factor * (1 - keep) + inv_freq * keep
    return scaled, _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    given = rope.get("attention_factor")
    if given is not None:
        return float(given)

    def mscale(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(float(rope["mscale"])) / mscale(float(rope["mscale_all_dim"]))
    return mscale(1.0)


def _llama3(rope: Mapping[str, Any], inv_freq: Tensor) -> Tensor:
    factor = _number(rope, "factor")
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    original = _number(rope, "original_max_position_embeddings")
    rotations = original * inv_freq / (2 * math.pi)
    keep = ((rotations - low) / (high - low)).clamp(0, 1)
    return inv_freq / factor * (1 - keep) + inv_freq * keep


def _number(rope: Mapping[str, Any], name: str) -> float:
    value = rope.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(
            "model", f"config.json: rope_scaling.{name} must be a positive number, got {value!r}"
        )
    return float(value)

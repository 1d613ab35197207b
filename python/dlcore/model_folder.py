"""Finds a model's folder and reads its configuration; weights are loader.py's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from dlcore.config import ConfigError, EngineConfig, ModelConfig
from dlcore.sampling_params import ParameterError, SamplingParams

GENERATION_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def find_model_folder(model: str) -> Path:
    """A local folder as it is, or a Hugging Face repository id downloaded to its cache."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ConfigError("model", f"{model!r} is a file; give the folder that holds config.json")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ConfigError("model", f"folder {model!r} does not exist; check the path")
    try:
        return Path(snapshot_download(model, ignore_patterns=["*.bin", "*.pth", "*.pt", "*.gguf"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            "model",
            f"{model!r} is neither a local folder nor a Hugging Face repository that can be "
            f"downloaded ({type(error).__name__}); check the path",
        ) from error


def read_model_config(config: EngineConfig, device: str) -> ModelConfig:
    """Reads config.json and generation_config.json; `device` ("cpu" | "cuda") decides "auto"."""
    path = find_model_folder(config.model)
    hf_config = _read_json(path / "config.json")
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError("model", f"{path / 'config.json'} has no model_type")
    generation_path = path / "generation_config.json"
    generation = _read_json(generation_path) if generation_path.is_file() else {}
    return ModelConfig(
        path=path,
        model_type=model_type,
        vocab_size=read_positive_int(hf_config, "vocab_size"),
        max_model_len=_max_model_len(config, hf_config),
        eos_token_ids=_eos_token_ids(hf_config, generation),
        dtype=_dtype(config.dtype, hf_config, device),
        hf_config=hf_config,
        kv_cache_dtype=config.kv_cache_dtype,
        generation_defaults=_generation_defaults(generation),
    )


def read_positive_int(hf_config: Mapping[str, Any], name: str) -> int:
    value = hf_config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError("model", f"config.json: {name} must be a positive integer, got {value!r}")
    return value


def rope_parameters(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings under either published spelling: rope_theta + rope_scaling, or rope_parameters.

    The result always has "rope_type" and "rope_theta".
    """
    scaling = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise ConfigError("model", "config.json: rope_scaling must be an object or null")
    return {
        **scaling,
        "rope_type": scaling.get("rope_type", scaling.get("type", "default")),
        "rope_theta": float(scaling.get("rope_theta", hf_config.get("rope_theta", 10000.0))),
    }


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError("model", f"{path.parent} has no {path.name}; is it a model folder?")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("model", f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("model", f"{path} must hold a JSON object")
    return value


def _max_model_len(config: EngineConfig, hf_config: Mapping[str, Any]) -> int:
    positions = read_positive_int(hf_config, "max_position_embeddings")
    rope = rope_parameters(hf_config)
    if rope["rope_type"] in ("yarn", "linear", "llama3"):
        original = rope.get("original_max_position_embeddings")
        scaled = int((original or positions) * float(rope.get("factor", 1.0)))
        positions = max(positions, scaled)
    if config.max_model_len is None:
        return positions
    if config.max_model_len > positions:
        raise ConfigError(
            "max_model_len",
            f"{config.max_model_len} exceeds the model's {positions} positions; "
            f"use max_model_len <= {positions}, or add rope_scaling to its config.json",
        )
    return config.max_model_len


def _eos_token_ids(hf_config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    ids: set[int] = set()
    for source in (hf_config, generation):
        value = source.get("eos_token_id")
        ids.update(v for v in (value if isinstance(value, list) else [value]) if v is not None)
    return tuple(sorted(ids))


def _generation_defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        n: generation[n] for n in GENERATION_FIELDS if isinstance(generation.get(n), int | float)
    }
    if generation.get("do_sample") is False:  # the authors' way to say greedy
        found["temperature"] = 0.0
    try:
        SamplingParams(**found)
    except ParameterError as error:
        raise ConfigError("model", f"generation_config.json: {error}") from None
    if "top_k" in found:
        found["top_k"] = int(found["top_k"])  # some write 50.0
    return found


def _dtype(requested: str, hf_config: Mapping[str, Any], device: str) -> str:
    if requested != "auto":
        return requested
    if device == "cpu":
        return "float32"  # faster than bfloat16 on most CPUs, and exact
    stored = hf_config.get("dtype", hf_config.get("torch_dtype"))
    return "float16" if stored == "float16" else "bfloat16"

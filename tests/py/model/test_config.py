"""A wrong option or model folder is one error that names the field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import tiny_checkpoint
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from dlcore.config import ConfigError, EngineConfig
from dlcore.layers.rope import build_cos_sin
from dlcore.loader import CheckpointError
from dlcore.model_folder import read_model_config, rope_parameters
from dlcore.runner import build_engine

WRONG = [
    ("model", ""),
    ("dtype", "int8"),
    ("load_format", "pickle"),
    ("device", "tpu"),
    ("device", "tpu:1"),
    ("device", "cpu:0"),
    ("device", "cuda:one"),
    ("device", "cuda:"),
    ("max_model_len", 0),
    ("max_model_len", 1.5),
    ("max_num_batched_tokens", -1),
    ("max_num_seqs", 0),
    ("block_size", 0),
    ("num_kv_blocks", True),
    ("gpu_memory_utilization", 0.0),
    ("gpu_memory_utilization", 1.5),
    ("gpu_memory_utilization", float("nan")),
    ("seed", -1),
    ("cudagraph_capture_sizes", ()),
    ("cudagraph_capture_sizes", (0,)),
    ("watchdog_timeout_s", float("inf")),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_option_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: ") as error:
        EngineConfig(**{"model": "m", name: value})
    assert error.value.field == name


def test_a_device_may_carry_its_index() -> None:
    config = EngineConfig(model="m", device="cuda:3")
    assert (config.device, config.device_index) == ("cuda", 3)
    with pytest.raises(ConfigError, match="device: cuda:3 contradicts device_index"):
        EngineConfig(model="m", device="cuda:3", device_index=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Qwen3 to spoil."""
    copy = tmp_path / "m"
    shutil.copytree(tiny_checkpoint("qwen3").folder, copy)
    return copy


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path, field: str, message: str, **options: Any) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build_engine(EngineConfig(model=str(folder), device="cpu", **options))
    assert error.value.field == field


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "no model_type"),
        ({"model_type": "gpt2"}, "'gpt2' is not known; dlcore serves .*qwen3"),
        ({"model_type": "../qwen3"}, "is not known"),
        ({"vocab_size": "many"}, "vocab_size must be a positive integer"),
        ({"hidden_size": 0}, "hidden_size must be"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "novel"}}, "'novel' is none of"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": -1}}, "must be a positive number"),
        ({"use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_a_wrong_config_json_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    refused(folder, "model", message)


def test_an_unknown_folder_is_said_to_be_unknown(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "model", "does not exist")


def test_a_folder_without_config_json(tmp_path: Path) -> None:
    refused(tmp_path, "model", r"has no config\.json")


def test_a_config_json_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    refused(folder, "model", "not valid JSON")


def test_a_context_longer_than_the_models(folder: Path) -> None:
    refused(folder, "max_model_len", "exceeds the model's 4096 positions", max_model_len=4097)


def test_a_whole_prompt_must_fit_a_step_without_chunks(folder: Path) -> None:
    options = {"enable_chunked_prefill": False, "max_num_batched_tokens": 64}
    refused(folder, "max_num_batched_tokens", "enable_chunked_prefill=True", **options)


def test_weights_that_do_not_fit_the_config_are_named(folder: Path) -> None:
    edit(folder, intermediate_size=200)
    with pytest.raises(CheckpointError, match=r"mlp.*shape"):
        build_engine(EngineConfig(model=str(folder), device="cpu"))


def test_no_gpu_is_said_plainly(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        build_engine(EngineConfig(model=str(folder), device="cuda"))


def test_eos_ids_and_sampling_defaults_come_from_the_folder(folder: Path) -> None:
    config = read_model_config(EngineConfig(model=str(folder)), "cpu")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert set(config.eos_token_ids) == set(generation["eos_token_id"])
    assert config.generation_defaults["top_k"] == generation["top_k"]
    assert config.dtype == "float32"


@pytest.mark.parametrize(("name", "value"), [("temperature", -1), ("top_p", True), ("min_p", 2)])
def test_wrong_sampling_defaults_are_named_at_once(folder: Path, name: str, value: float) -> None:
    (folder / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(ConfigError, match=f"model: generation_config.json: {name}: must be"):
        read_model_config(EngineConfig(model=str(folder)), "cpu")


ROPES = [
    None,
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
]


@pytest.mark.parametrize("scaling", ROPES, ids=lambda s: s["rope_type"] if s else "default")
def test_rope_tables_are_those_of_transformers(scaling: dict[str, Any] | None) -> None:
    hf = {"rope_theta": 1e6, "rope_scaling": scaling}
    table = build_cos_sin(rope_parameters(hf), 64, 2000, torch.device("cpu"))
    config = Qwen3Config(
        head_dim=64, max_position_embeddings=4096, rope_parameters=rope_parameters(hf)
    )
    positions = torch.arange(2000)[None]
    cos, sin = Qwen3RotaryEmbedding(config)(torch.zeros(1, 1), positions)
    torch.testing.assert_close(table[:, :32], cos[0, :, :32], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(table[:, 32:], sin[0, :, :32], atol=1e-5, rtol=1e-5)

"""Weights come from the file, exactly; whatever is wrong with it is one clear error."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dlcore.loader import (
    CheckpointError,
    draw_dummy_weights,
    draw_uniform_weights,
    load_safetensors,
)

STORED = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.weight": torch.arange(4, dtype=torch.float32),
}


def targets() -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, -1.0) for name, tensor in STORED.items()}


def write(folder: Path, tensors: dict[str, Tensor] = STORED) -> Path:
    save_file(tensors, str(folder / "model.safetensors"))
    return folder


def write_sharded(folder: Path) -> Path:
    index = {}
    for i, (name, tensor) in enumerate(STORED.items()):
        index[name] = f"model-{i}.safetensors"
        save_file({name: tensor}, str(folder / index[name]))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def fails(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_safetensors(folder, targets())


@pytest.mark.parametrize("writer", [write, write_sharded])
def test_values_arrive_exactly(tmp_path: Path, writer: object) -> None:
    weights = targets()
    load_safetensors(writer(tmp_path), weights)  # type: ignore[operator]
    for name, tensor in STORED.items():
        assert torch.equal(weights[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_are_converted_to_the_parameters_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = targets()
    load_safetensors(write(tmp_path, {n: t.to(dtype) for n, t in STORED.items()}), weights)
    assert torch.equal(weights["a.weight"], STORED["a.weight"])


def test_a_name_may_fill_rows_of_a_larger_parameter(tmp_path: Path) -> None:
    whole = torch.zeros(5, 4)
    load_safetensors(write(tmp_path), {"a.weight": whole[1:4], "b.weight": whole[0]})
    assert torch.equal(whole[1:4], STORED["a.weight"])
    assert torch.equal(whole[0], STORED["b.weight"])


def test_an_ignored_tensor_may_be_there(tmp_path: Path) -> None:
    extra = {**STORED, "extra": torch.zeros(1)}
    load_safetensors(write(tmp_path, extra), targets(), frozenset({"extra"}))


def test_an_unknown_folder(tmp_path: Path) -> None:
    fails(tmp_path / "nowhere", "does not exist")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    fails(tmp_path, r"neither model\.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 8, 40, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, keep: float) -> None:
    path = write(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    fails(tmp_path, "truncated|damaged")


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b'{"a.weight": 3}',
        b'{"a.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0]}}',
        b'{"a.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [48, 0]}}',
        b'{"a.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [-64, 0]}}',
    ],
)
def test_a_damaged_header(tmp_path: Path, header: bytes) -> None:
    data = struct.pack("<Q", len(header)) + header + bytes(64)
    (tmp_path / "model.safetensors").write_bytes(data)
    fails(tmp_path, "damaged|truncated")


def test_a_header_that_lies_about_the_size_of_a_tensor(tmp_path: Path) -> None:
    entries = {
        "a.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 8]},
        "b.weight": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    }
    header = json.dumps(entries).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(24)
    (tmp_path / "model.safetensors").write_bytes(data)
    fails(tmp_path, "bytes other than its shape")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    fails(write(tmp_path, {"a.weight": STORED["a.weight"]}), r"missing, first b\.weight")


def test_a_surplus_tensor_is_named(tmp_path: Path) -> None:
    fails(write(tmp_path, {**STORED, "c": torch.zeros(1)}), "not this model's, first c")


def test_a_wrong_shape_names_both(tmp_path: Path) -> None:
    wrong = {**STORED, "a.weight": torch.zeros(4, 3)}
    fails(write(tmp_path, wrong), r"shape \[4, 3\].*\[3, 4\]")


def test_a_wrong_dtype_names_what_is_accepted(tmp_path: Path) -> None:
    fails(write(tmp_path, {**STORED, "b.weight": torch.zeros(4, dtype=torch.int32)}), "I32.*F32")


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    (write_sharded(tmp_path) / "model-1.safetensors").unlink()
    fails(tmp_path, "model-1")


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd"])
def test_an_index_cannot_name_files_outside_the_folder(tmp_path: Path, shard: str) -> None:
    index = {"weight_map": {"a.weight": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(tmp_path, "which is not in")


def test_dummy_weights_are_seeded_and_leave_norms_at_one() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        weights = {
            "l.weight": torch.empty(100, 100),
            "l.bias": torch.empty(7),
            "input_layernorm.weight": torch.empty(9),
        }
        draw_dummy_weights(weights, seed)
        return weights

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(first["l.weight"], again["l.weight"])
    assert not torch.equal(first["l.weight"], other["l.weight"])
    assert first["l.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert (first["input_layernorm.weight"] == 1).all()
    assert (first["l.bias"] == 0).all()


def test_uniform_weights_are_seeded_small_and_everywhere() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        weights = {"l.weight": torch.empty(100, 100), "norm.weight": torch.empty(1000)}
        draw_uniform_weights(weights, seed)
        return weights

    first, again, other = drawn(1), drawn(1), drawn(2)
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        assert not torch.equal(weight, other[name])
        assert weight.abs().max().item() <= 1e-3
        assert weight.std().item() == pytest.approx(1e-3 / 3**0.5, rel=0.05)

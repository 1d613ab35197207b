"""Checkpoint files to parameters: safetensors by mmap, sharded or not, in parallel; or drawn."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100 * 2**20  # the limit of the format's own library
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NUM_THREADS = 8


class CheckpointError(ValueError):
    """A weight file is missing, damaged, or not this model's; the message names file and tensor."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in a checkpoint: bytes [start, end) of `data`, a mapped file."""

    path: Path
    data: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> Tensor:
        """A view of the mapped file."""
        dtype = DTYPES[self.dtype]
        count = (self.end - self.start) // dtype.itemsize
        return torch.frombuffer(self.data, dtype=dtype, count=count, offset=self.start).view(
            self.shape
        )


def load_safetensors(
    folder: Path, weights: Mapping[str, Tensor], ignored: frozenset[str] = frozenset()
) -> None:
    """Fills `weights` (checkpoint name -> parameter) from the folder's safetensors files.

    Values are converted to the parameter's dtype. Raises CheckpointError unless the files hold
    exactly these tensors (and any of `ignored`) in these shapes.
    """
    stored = open_checkpoint(folder)
    _check_names(folder, weights.keys(), stored.keys(), ignored)
    for name, weight in weights.items():
        _check_tensor(name, weight, stored[name])

    def copy(name: str) -> None:
        with torch.inference_mode():
            weights[name].copy_(stored[name].read())

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in pool.map(copy, weights):
            pass


def draw_dummy_weights(weights: Mapping[str, Tensor], seed: int) -> None:
    """Weights normal(0, 0.02), norms one, biases zero: for timing, not for text."""
    device = next(iter(weights.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    with torch.inference_mode():
        for name, weight in weights.items():
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif name.endswith("bias"):
                weight.zero_()
            else:
                weight.normal_(0.0, 0.02, generator=generator)


def draw_uniform_weights(weights: Mapping[str, Tensor], seed: int) -> None:
    """All uniform in (-1e-3, 1e-3), norms and biases too, as vLLM's dummy weights are.

    At its power limit, a GPU's speed depends on the numbers.
    """
    device = next(iter(weights.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    with torch.inference_mode():
        for weight in weights.values():
            weight.uniform_(-1e-3, 1e-3, generator=generator)


def open_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's checkpoint by name. Reads headers only."""
    if not folder.is_dir():
        raise CheckpointError(f"model folder {folder} does not exist")
    if (folder / INDEX_FILE).is_file():
        return _open_sharded(folder)
    path = folder / SINGLE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; download the weights, or use "
            "load_format='dummy' for random ones"
        )
    return _open_file(path)


def _open_sharded(folder: Path) -> dict[str, StoredTensor]:
    index_path = folder / INDEX_FILE
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index_path} is damaged: {error!r}") from error
    files: dict[str, dict[str, StoredTensor]] = {}
    for shard in sorted(set(shards.values())):
        path = folder / shard
        if Path(shard).name != shard or not path.is_file():
            raise CheckpointError(f"{index_path} names {shard!r}, which is not in {folder}")
        files[shard] = _open_file(path)
    for name, shard in shards.items():
        if name not in files[shard]:
            raise CheckpointError(f"{index_path} says {shard} holds {name}, but it does not")
    return {name: tensor for file in files.values() for name, tensor in file.items()}


def _open_file(path: Path) -> dict[str, StoredTensor]:
    """Parses a safetensors header: uint64 length, JSON, then the tensors' bytes."""
    size = path.stat().st_size
    if size < 8:
        raise CheckpointError(f"{path} is truncated: {size} bytes are no safetensors file")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    (header_size,) = struct.unpack("<Q", data[:8])
    if header_size > min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(
            f"{path} is truncated or damaged: its header claims {header_size} bytes of {size}"
        )
    try:
        header = json.loads(data[8 : 8 + header_size].decode("utf-8"))
        header.pop("__metadata__", None)
        return {
            name: _stored_tensor(path, data, name, entry, 8 + header_size)
            for name, entry in header.items()
        }
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: its header is not JSON: {error}") from error


def _stored_tensor(path: Path, data: mmap.mmap, name: str, entry: Any, base: int) -> StoredTensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        start, end = (base + int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: bad entry of {name}: {error!r}") from error
    if not base <= start <= end or end > len(data):
        raise CheckpointError(
            f"{path} is truncated: {name} ends at byte {end} of a file of {len(data)}; download "
            "it again"
        )
    return StoredTensor(path, data, dtype, shape, start, end)


def _check_names(folder: Path, wanted: Any, found: Any, ignored: frozenset[str]) -> None:
    missing = sorted(set(wanted) - set(found))
    surplus = sorted(set(found) - set(wanted) - ignored)
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors are missing, first {missing[0]}; the checkpoint "
            "does not match its config.json"
        )
    if surplus:
        raise CheckpointError(
            f"{folder}: {len(surplus)} tensors are not this model's, first {surplus[0]}; the "
            "checkpoint does not match its config.json"
        )


def _check_tensor(name: str, weight: Tensor, stored: StoredTensor) -> None:
    if stored.dtype not in DTYPES:
        raise CheckpointError(
            f"{stored.path}: {name} has dtype {stored.dtype}; it must be one of {', '.join(DTYPES)}"
        )
    if stored.shape != tuple(weight.shape):
        raise CheckpointError(
            f"{stored.path}: {name} has shape {list(stored.shape)}, the config.json asks for "
            f"{list(weight.shape)}"
        )
    if stored.end - stored.start != weight.numel() * DTYPES[stored.dtype].itemsize:
        raise CheckpointError(f"{stored.path} is damaged: {name} has bytes other than its shape's")

"""What crosses between a front end and the engine process: msgpack of these, nothing else.

A core id is {incarnation: 8 bits, worker: 8 bits, the worker's own number: 48 bits}: routing an
output is a shift, and a restarted front end never takes its predecessor's rows for its own.
"""

from __future__ import annotations

from typing import Any

import msgspec

ID_BITS = 48
ID_MASK = (1 << ID_BITS) - 1
WORKER_BITS = 8
MAX_WORKERS = 1 << WORKER_BITS


def id_prefix(worker: int, incarnation: int) -> int:
    """What a front end's core ids begin with."""
    return (incarnation % 256) << WORKER_BITS | worker


def worker_of(core_id: int) -> int:
    return core_id >> ID_BITS & (MAX_WORKERS - 1)


# As _core.OutputBatch.rows() gives them: id, tokens, finish reason, stop token, cached tokens.
Row = tuple[int, list[int], int, int, int]
# As _core.OutputBatch.logprobs(i): logprob, rank, top ids, top logprobs.
Logprobs = tuple[float, int, list[int], list[float]]


class Submit(msgspec.Struct, array_like=True, tag="s"):
    id: int
    prompt: bytes  # int32, native byte order: both ends are on one machine
    params: dict[str, Any]  # keyword arguments of _core.SamplingParams
    priority: int
    cache_salt: bytes
    structured: dict[str, Any] | None = None  # StructuredOutputs, by field


class Abort(msgspec.Struct, array_like=True, tag="a"):
    ids: list[int]


class Snapshot(msgspec.Struct, array_like=True, tag="m"):
    """A front end's own metrics, for the page that sums all of them."""

    worker: int
    metrics: dict[str, float]


class Outputs(msgspec.Struct, array_like=True, tag="o"):
    rows: list[Row]
    logprobs: dict[int, list[Logprobs]] = {}  # by row
    prompt_logprobs: dict[int, list[Logprobs]] = {}
    errors: dict[int, str] = {}


class Rejected(msgspec.Struct, array_like=True, tag="r"):
    """A Submit the core refused; `kind` is "invalid", "queue_full" or "unavailable"."""

    id: int
    kind: str
    message: str


class Stats(msgspec.Struct, array_like=True, tag="t"):
    """Broadcast several times a second: the core's counters, and the front ends' metrics."""

    core: dict[str, float]
    snapshots: dict[int, dict[str, float]]


ToEngine = Submit | Abort | Snapshot
ToFrontend = Outputs | Rejected | Stats

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_to_frontend = msgspec.msgpack.Decoder(ToFrontend).decode

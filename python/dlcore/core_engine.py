"""What the front end uses of `_core.Engine` (and what a test's stand-in provides)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dlcore.completion_state import CoreLogprobs
from dlcore.engine_client import EngineDeadError, QueueFullError
from dlcore.sampling_params import ParameterError

Int32Array = npt.NDArray[np.int32]


# request id, new tokens, finish reason, stop token (-1 = none), cached prompt tokens
CoreRow = tuple[int, list[int], int, int, int]


# lease id, epoch, number of tokens whose KV it holds
KvLeaseTuple = tuple[int, int, int]


class CoreOutputBatch(Protocol):
    """One row per sequence that got something; see `_core.OutputBatch`."""

    def rows(self) -> Sequence[CoreRow]: ...
    def logprobs(self, i: int) -> Sequence[CoreLogprobs]: ...
    def prompt_logprobs(self, i: int) -> Sequence[CoreLogprobs]: ...
    def error(self, i: int) -> str: ...
    def kv_lease(self, i: int) -> KvLeaseTuple | None: ...


class CoreEngine(Protocol):
    """Thread-safe; `submit` raises ValueError naming the field, QueueFull, EngineUnavailable."""

    def submit(
        self,
        request_id: int,
        prompt_token_ids: Int32Array,
        params: Any,
        *,
        priority: int = 0,
        cache_salt: bytes = b"",
        resume_token_ids: Int32Array | None = None,
        kv_source: Any = None,
        hold_kv: bool = False,
    ) -> None: ...
    def abort(self, request_ids: Sequence[int]) -> None: ...
    def poll(self, timeout_s: float) -> CoreOutputBatch | None: ...
    def output_fd(self) -> int: ...
    def stats(self) -> dict[str, float]: ...
    def is_healthy(self) -> bool: ...
    def debug_string(self) -> str: ...
    def stop(self) -> object: ...


def refusal(text: str) -> Exception | None:
    """A core in another process refuses a request by an error row: "KIND: why". What
    `submit` would have raised here, or None for an error of a request that was taken."""
    kind, _, why = text.partition(": ")
    if kind == "invalid":
        return parameter_error(why)
    if kind == "queue_full":
        return QueueFullError(why)
    if kind == "unavailable":
        return EngineDeadError(why)
    return None


def parameter_error(message: str) -> ParameterError:
    """The core's message begins with the field at fault."""
    field_name, _, rest = message.partition(" ")
    return ParameterError(field_name.rstrip(":"), rest or message)

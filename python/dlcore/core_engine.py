"""What the front end uses of `_core.Engine` (and what a test's stand-in provides)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dlcore.completion_state import CoreLogprobs

Int32Array = npt.NDArray[np.int32]


# request id, new tokens, finish reason, stop token (-1 = none), cached prompt tokens
CoreRow = tuple[int, list[int], int, int, int]


class CoreOutputBatch(Protocol):
    """One row per sequence that got something; see `_core.OutputBatch`."""

    def rows(self) -> Sequence[CoreRow]: ...
    def logprobs(self, i: int) -> Sequence[CoreLogprobs]: ...
    def prompt_logprobs(self, i: int) -> Sequence[CoreLogprobs]: ...
    def error(self, i: int) -> str: ...


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
    ) -> None: ...
    def abort(self, request_ids: Sequence[int]) -> None: ...
    def poll(self, timeout_s: float) -> CoreOutputBatch | None: ...
    def output_fd(self) -> int: ...
    def stats(self) -> dict[str, float]: ...
    def debug_string(self) -> str: ...
    def stop(self) -> None: ...

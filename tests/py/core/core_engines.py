"""Engines without a model, for tests of the seam."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dlcore import _core

VOCAB = 1000


def options(**changes: Any) -> _core.EngineOptions:
    values: dict[str, Any] = {
        "max_num_batched_tokens": 512,
        "max_num_seqs": 256,
        "max_model_len": 4096,
        "block_size": 16,
        "vocab_size": VOCAB,
        "num_kv_blocks": 20000,
        "cache_groups": [("paged", 1, 1024, 0)],
    }
    return _core.EngineOptions(**{**values, **changes})


def greedy(max_tokens: int, **changes: Any) -> _core.SamplingParams:
    return _core.SamplingParams(temperature=0.0, max_tokens=max_tokens, **changes)


@contextmanager
def null_engine(null_step_us: int = 0, **changes: Any) -> Iterator[_core.Engine]:
    engine = _core.Engine(options(**changes), device="null", null_step_us=null_step_us)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def null_token(position: int) -> int:
    """What the null model says at a position (cpp/graph/null_executable.cc)."""
    return position * 2654435761 % (1 << 32) % VOCAB


Finished = dict[int, tuple[list[int], int, str]]  # id -> tokens, finish reason, error


def drain(engine: _core.Engine, count: int, timeout_s: float = 30.0) -> Finished:
    """Polls until `count` requests have ended."""
    tokens: dict[int, list[int]] = {}
    finished: Finished = {}
    deadline = time.monotonic() + timeout_s
    while len(finished) < count:
        assert time.monotonic() < deadline, f"{len(finished)} of {count} requests ended"
        batch = engine.poll(0.1)
        if batch is None:
            continue
        for i, (request_id, new, reason, _, _) in enumerate(batch.rows()):
            tokens.setdefault(request_id, []).extend(new)
            if reason:
                finished[request_id] = (tokens[request_id], reason, batch.error(i))
    return finished

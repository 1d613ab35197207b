"""A core in memory: every poll is one step, every running request gets one token."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlcore.core_request import RequestLimits
from dlcore.engine_session import EngineSession, ServedModel
from dlcore.tokenizer import Tokenizer

STOP, LENGTH, ABORT, ERROR = 1, 2, 3, 4
NextToken = Callable[["FakeRequest"], int]


@dataclass
class FakeParams:
    fields: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.fields[name]


def make_params(**fields: Any) -> FakeParams:
    return FakeParams(fields)


@dataclass
class FakeRequest:
    core_id: int
    prompt: list[int]
    params: FakeParams
    priority: int
    cache_salt: bytes
    tokens: list[int] = field(default_factory=list)


@dataclass
class Row:
    core_id: int
    tokens: list[int]
    finish: int = 0
    stop_token: int = -1
    cached: int = 0
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    error: str = ""


class FakeBatch:
    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def rows(self) -> list[tuple[int, list[int], int, int, int]]:
        return [(r.core_id, r.tokens, r.finish, r.stop_token, r.cached) for r in self._rows]

    def logprobs(self, i: int) -> list[Any]:
        return self._rows[i].logprobs

    def prompt_logprobs(self, i: int) -> list[Any]:
        return self._rows[i].prompt_logprobs

    def error(self, i: int) -> str:
        return self._rows[i].error


def count_up(request: FakeRequest) -> int:
    """A token that tells the prompt, the seed and the position apart."""
    return (request.prompt[-1] + request.params.seed + len(request.tokens)) % 256 + 3


class FakeEngine:
    """Implements CoreEngine. `next_token` says what each request gets."""

    def __init__(self, next_token: NextToken = count_up, *, stalled: bool = False) -> None:
        self.next_token = next_token
        self.stalled = stalled
        self.healthy = True
        self.stopped = False
        self.running: dict[int, FakeRequest] = {}
        self.submitted: list[FakeRequest] = []
        self.aborted: list[int] = []
        self.steps = 0
        self._extra: list[Row] = []
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)

    def submit(
        self,
        request_id: int,
        prompt_token_ids: Any,
        params: FakeParams,
        *,
        priority: int = 0,
        cache_salt: bytes = b"",
        resume_token_ids: Any = None,
    ) -> None:
        request = FakeRequest(request_id, prompt_token_ids.tolist(), params, priority, cache_salt)
        if resume_token_ids is not None:
            request.tokens = resume_token_ids.tolist()
        self.running[request_id] = request
        self.submitted.append(request)
        self._wake()

    def abort(self, request_ids: Sequence[int]) -> None:
        self.aborted += request_ids
        for core_id in request_ids:
            self.running.pop(core_id, None)

    def emit(self, *rows: Row) -> None:
        """Adds rows to the next batch."""
        self._extra += rows
        self._wake()

    def poll(self, timeout_s: float) -> FakeBatch | None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return None
        rows, self._extra = self._extra, []
        if not self.stalled:
            rows += self._step()
        if self.running and not self.stalled:
            self._wake()
        return FakeBatch(rows) if rows else None

    def output_fd(self) -> int:
        return self._fd

    def stats(self) -> dict[str, float]:
        return {"healthy": self.healthy, "num_running": len(self.running)}

    def is_healthy(self) -> bool:
        return self.healthy

    def debug_string(self) -> str:
        return "fake"

    def stop(self) -> None:
        self.stopped = True

    def _step(self) -> Iterator[Row]:
        self.steps += 1
        for request in list(self.running.values()):
            token = self.next_token(request)
            request.tokens.append(token)
            row = Row(request.core_id, [token])
            if token in request.params.stop_token_ids:
                row.finish, row.stop_token = STOP, token
            elif len(request.tokens) == request.params.max_tokens:
                row.finish = LENGTH
            if row.finish:
                del self.running[request.core_id]
            yield row

    def _wake(self) -> None:
        os.eventfd_write(self._fd, 1)


def make_session(
    engine: FakeEngine,
    tokenizer: Tokenizer | None = None,
    *,
    max_model_len: int = 64,
    vocab_size: int = 512,
) -> EngineSession:
    model = ServedModel(
        name="fake",
        limits=RequestLimits(max_model_len=max_model_len, vocab_size=vocab_size),
        device="null",
        max_num_seqs=256,
        block_size=4,
        eos_token_ids=frozenset(tokenizer.eos_token_ids if tokenizer else ()),
        tokenizer=tokenizer,
    )
    return EngineSession(engine, model, make_params)

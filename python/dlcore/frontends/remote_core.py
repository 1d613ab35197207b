"""A front end's stand-in for the core: the same methods, the engine process behind them."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
import zmq

from dlcore.completion_state import FINISH_ERROR
from dlcore.core_engine import CoreRow, Int32Array, KvLeaseTuple
from dlcore.frontends.endpoint import Context, Endpoint, connect
from dlcore.frontends.messages import (
    ID_BITS,
    ID_MASK,
    Abort,
    GiveBack,
    Logprobs,
    Outputs,
    Rejected,
    Released,
    ReleaseLease,
    Snapshot,
    Stats,
    Submit,
    Take,
    Taken,
    ToEngine,
    decode_to_frontend,
    encode,
    id_prefix,
    prefix_of,
)
from dlcore.kv_link import NamedLease
from dlcore.serve.limits import Refusal

POLL_MS = 50


class RemoteParams:
    """What `_core.SamplingParams` is to the local core: the keyword arguments, kept."""

    __slots__ = ("fields",)

    def __init__(self, **fields: Any) -> None:
        self.fields = fields


class RemoteBatch:
    """Several messages of the engine process as one `CoreOutputBatch`."""

    def __init__(self, messages: Sequence[Outputs | Rejected], prefix: int) -> None:
        self._prefix = prefix
        self._rows: list[CoreRow] = []
        self._logprobs: dict[int, list[Logprobs]] = {}
        self._prompt_logprobs: dict[int, list[Logprobs]] = {}
        self._errors: dict[int, str] = {}
        self._kv_leases: dict[int, KvLeaseTuple] = {}
        for message in messages:
            self._add(message)

    def rows(self) -> Sequence[CoreRow]:
        return self._rows

    def logprobs(self, i: int) -> Sequence[Logprobs]:
        return self._logprobs.get(i, ())

    def prompt_logprobs(self, i: int) -> Sequence[Logprobs]:
        return self._prompt_logprobs.get(i, ())

    def error(self, i: int) -> str:
        return self._errors.get(i, "")

    def kv_lease(self, i: int) -> KvLeaseTuple | None:
        return self._kv_leases.get(i)

    def _add(self, message: Outputs | Rejected) -> None:
        start = len(self._rows)
        if isinstance(message, Rejected):
            self._rows.append((self._local_id(message.id), [], FINISH_ERROR, -1, 0))
            self._errors[start] = f"{message.kind}: {message.message}"
            return
        for core_id, tokens, finish, stop_token, cached in message.rows:
            self._rows.append((self._local_id(core_id), tokens, finish, stop_token, cached))
        for mine, theirs in (
            (self._logprobs, message.logprobs),
            (self._prompt_logprobs, message.prompt_logprobs),
        ):
            mine.update({start + i: value for i, value in theirs.items()})
        self._errors.update({start + i: text for i, text in message.errors.items()})
        self._kv_leases.update({start + i: lease for i, lease in message.kv_leases.items()})

    def _local_id(self, core_id: int) -> int:
        """The front end's own number; 0, which is nobody's, for a predecessor's request."""
        return core_id & ID_MASK if prefix_of(core_id) == self._prefix else 0


class RemoteCore:
    """Implements CoreEngine. Sends on the event loop's thread, receives on its own."""

    def __init__(self, endpoint: Endpoint, worker: int, incarnation: int = 0) -> None:
        self._worker = worker
        self._prefix = id_prefix(worker, incarnation)
        self._context: Context = zmq.Context()
        key = endpoint.public_key
        self._requests = connect(self._context, zmq.PUSH, endpoint.requests, key)
        self._socket = connect(self._context, zmq.PULL, endpoint.outputs(worker), key)
        self._received: deque[Outputs | Rejected] = deque()
        self._releases: dict[int, Future[bool]] = {}
        self._places: dict[int, Future[Refusal | None]] = {}
        self._next_question = itertools.count(1)
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._readable = select.poll()
        self._readable.register(self._event_fd, select.POLLIN)
        self._stats: dict[str, float] = {"healthy": 1.0}
        self.snapshots: dict[int, dict[str, float]] = {}
        self._stopping = threading.Event()
        self._first_stats = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="remote-core", daemon=True)
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """True once the engine process was heard."""
        return self._first_stats.wait(timeout_s)

    def submit(
        self,
        request_id: int,
        prompt_token_ids: Int32Array,
        params: RemoteParams,
        *,
        priority: int = 0,
        cache_salt: bytes = b"",
        structured: dict[str, Any] | None = None,
        resume_token_ids: Int32Array | None = None,
        kv_source: NamedLease | None = None,
        hold_kv: bool = False,
    ) -> None:
        """Never raises: what the core refuses comes back as a row that says so."""
        self._send(
            Submit(
                self._global_id(request_id),
                prompt_token_ids.tobytes(),
                params.fields,
                priority,
                cache_salt,
                structured,
                b"" if resume_token_ids is None else resume_token_ids.tobytes(),
                kv_source,
                hold_kv,
            )
        )

    def abort(self, request_ids: Sequence[int]) -> None:
        self._send(Abort([self._global_id(i) for i in request_ids]))

    def release_kv_lease(self, lease_id: int, epoch: int) -> Future[bool]:
        """False when it had ended. Without an answer while the engine process has none."""
        number = self._global_id(next(self._next_question))
        answer = self._releases[number] = Future()
        self._send(ReleaseLease(number, lease_id, epoch))
        return answer

    def take(self, name: str) -> Future[Refusal | None]:
        """None: another request of `name` may begin, and `give_back` must follow its end."""
        number = self._global_id(next(self._next_question))
        answer = self._places[number] = Future()
        self._send(Take(number, name))
        return answer

    def give_back(self, name: str) -> None:
        self._send(GiveBack(self._prefix, name))

    def publish(self, metrics: dict[str, float]) -> None:
        """Sends this front end's metrics for the others' pages."""
        self._send(Snapshot(self._worker, metrics))

    def poll(self, timeout_s: float) -> RemoteBatch | None:
        if not self._received and not self._readable.poll(timeout_s * 1000):
            return None
        self._clear_event()
        messages = [self._received.popleft() for _ in range(len(self._received))]
        return RemoteBatch(messages, self._prefix) if messages else None

    def output_fd(self) -> int:
        return self._event_fd

    def stats(self) -> dict[str, float]:
        """The engine's counters as of a fraction of a second ago."""
        return self._stats

    def is_healthy(self) -> bool:
        return bool(self._stats["healthy"])

    def debug_string(self) -> str:
        return f"front end {self._worker} of a remote core: {self._stats}"

    def stop(self) -> None:
        """Idempotent."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            self._context.destroy(linger=0)
            os.close(self._event_fd)

    def _global_id(self, core_id: int) -> int:
        return self._prefix << ID_BITS | core_id

    def _send(self, message: ToEngine) -> None:
        if not self._stopping.is_set():
            self._requests.send(encode(message))

    def _clear_event(self) -> None:
        with contextlib.suppress(BlockingIOError):  # nothing was signalled
            os.eventfd_read(self._event_fd)

    def _receive(self) -> None:
        while not self._stopping.is_set():
            if not self._socket.poll(POLL_MS):
                continue
            try:
                message = decode_to_frontend(self._socket.recv())
            except msgspec.MsgspecError:
                continue
            if isinstance(message, Stats):
                self._stats = message.core
                self.snapshots = message.snapshots
                self._first_stats.set()
            elif isinstance(message, Released):
                _answer(self._releases.pop(message.id, None), message.was_live)
            elif isinstance(message, Taken):
                _answer(self._places.pop(message.id, None), message.refusal)
            else:
                self._received.append(message)
                os.eventfd_write(self._event_fd, 1)


def _answer(asked: Future[Any] | None, result: object) -> None:
    """asked: None where this process's predecessor did."""
    if asked is not None and asked.set_running_or_notify_cancel():
        asked.set_result(result)

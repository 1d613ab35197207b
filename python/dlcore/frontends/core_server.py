"""The engine process's side: rows from the core to the front ends, requests from them to it."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import zmq

from dlcore import _core
from dlcore.completion_state import FINISH_ERROR
from dlcore.core_engine import CoreEngine, CoreOutputBatch
from dlcore.frontends.endpoint import Context, EndpointOwner
from dlcore.frontends.messages import (
    Abort,
    GiveBack,
    Outputs,
    Rejected,
    Released,
    ReleaseLease,
    Snapshot,
    Stats,
    Submit,
    Take,
    Taken,
    decode_to_engine,
    encode,
    id_prefix,
    prefix_of,
    worker_of,
)
from dlcore.frontends.remote_limits import SharedLimits
from dlcore.frontends.remote_rules import ForgottenError, RuledSubmits
from dlcore.kv_link import KvLink
from dlcore.serve.limits import Limits
from dlcore.structured.rules import RequestRules

STATS_INTERVAL_S = 0.25
POLL_MS = 50


class CoreServer:
    """Two threads: one takes requests, one hands out outputs and counters.

    A socket belongs to one thread: what the request thread has to say to a front end goes
    through `_replies`.
    """

    def __init__(
        self,
        core: CoreEngine,
        num_workers: int,
        rules: RequestRules | None = None,
        kv_link: KvLink | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`rules` is this object's to close; without it no request may be constrained. `kv_link`:
        where the core gives or takes KV. `limits`: what all front ends together admit."""
        self._core = core
        self._limits = SharedLimits(limits or Limits(0, 0))
        self._kv_link = kv_link
        self._ruled = None if rules is None else RuledSubmits(rules, self._submit)
        self._owner = EndpointOwner()
        self.endpoint = self._owner.endpoint
        self._context: Context = zmq.Context()
        self._requests = self._owner.bind(self._context, zmq.PULL, self.endpoint.requests)
        self._outputs = [
            self._owner.bind(self._context, zmq.PUSH, self.endpoint.outputs(worker))
            for worker in range(num_workers)
        ]
        self._snapshots: dict[int, dict[str, float]] = {}
        self._replies: list[Rejected | Released | Taken] = []
        self._reply_fd = os.eventfd(0, os.EFD_NONBLOCK)  # readable: there are some
        self._with_logprobs: set[int] = set()
        self._holding: set[int] = set()  # whose KV stays when they end
        self._live: set[int] = set()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._take_requests, name="frontend-requests", daemon=True),
            threading.Thread(target=self._hand_out, name="frontend-outputs", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Idempotent. The core is the caller's to stop."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        if self._ruled is not None:
            self._ruled.close()
        self._context.destroy(linger=0)
        self._owner.remove()
        reply_fd, self._reply_fd = self._reply_fd, -1
        if reply_fd >= 0:
            os.close(reply_fd)

    def forget_worker(self, worker: int, incarnation: int = 0) -> None:
        """A front end died: its requests have no reader any more. Any thread."""
        self._snapshots.pop(worker, None)
        self._limits.forget(id_prefix(worker, incarnation))
        self._abort([core_id for core_id in list(self._live) if worker_of(core_id) == worker])

    # ---- requests

    def _take_requests(self) -> None:
        while not self._stopping.is_set():
            if not self._requests.poll(POLL_MS):
                continue
            try:
                message = decode_to_engine(self._requests.recv())
            except msgspec.MsgspecError:
                continue  # not from a front end of this version
            match message:
                case Submit():
                    self._accept(message)
                case Abort(ids=ids):
                    self._abort(ids)
                case Snapshot(worker=worker, metrics=metrics):
                    self._snapshots[worker] = metrics
                case ReleaseLease():
                    self._release(message)
                case Take(id=number, name=name):
                    self._reply(Taken(number, self._limits.take(prefix_of(number), name)))
                case GiveBack(holder=holder, name=name):
                    self._limits.give_back(holder, name)

    def _accept(self, message: Submit) -> None:
        params = message.params
        if params.get("logprobs", -1) >= 0 or params.get("prompt_logprobs", -1) >= 0:
            self._with_logprobs.add(message.id)
        if message.hold_kv:
            self._holding.add(message.id)
        self._live.add(message.id)
        if message.structured is None:
            self._submit(message, dict)
        elif self._ruled is None:
            self._reject(message.id, "invalid", "structured_outputs: this server has none")
        else:
            self._ruled.start(message)

    def _submit(self, message: Submit, options: Callable[[], dict[str, Any]]) -> None:
        resume = np.frombuffer(message.resume, dtype=np.int32)
        try:
            self._core.submit(
                message.id,
                np.frombuffer(message.prompt, dtype=np.int32),
                _core.SamplingParams(**message.params),
                priority=message.priority,
                cache_salt=message.cache_salt,
                resume_token_ids=resume if len(resume) else None,
                **self._kv_options(message),
                **options(),
            )
        except ForgottenError:
            self._ended(message.id)
        except ValueError as error:
            self._reject(message.id, "invalid", str(error))
        except _core.QueueFull as error:
            self._reject(message.id, "queue_full", str(error))
        except _core.EngineUnavailable as error:
            self._reject(message.id, "unavailable", str(error))

    def _kv_options(self, message: Submit) -> dict[str, Any]:
        """Raises ValueError where the core has no part in it."""
        if message.kv_source is None and not message.hold_kv:
            return {}
        if self._kv_link is None:
            raise ValueError("kv_transfer_params: this engine has no part in it")
        wanted = message.kv_source
        source = self._kv_link.source(wanted) if wanted is not None else None
        return {"kv_source": source, "hold_kv": message.hold_kv}

    def _release(self, message: ReleaseLease) -> None:
        was_live = False
        if self._kv_link is not None:
            was_live = self._kv_link.release(message.lease_id, message.epoch).result()
        self._reply(Released(message.id, was_live))

    def _abort(self, core_ids: list[int]) -> None:
        if self._ruled is not None:
            self._ruled.forget(core_ids)
        self._core.abort(core_ids)

    def _reject(self, core_id: int, kind: str, message: str) -> None:
        self._ended(core_id)
        self._reply(Rejected(core_id, kind, message))

    def _reply(self, reply: Rejected | Released | Taken) -> None:
        self._replies.append(reply)
        if not self._stopping.is_set():
            os.eventfd_write(self._reply_fd, 1)

    # ---- outputs

    def _hand_out(self) -> None:
        next_stats = 0.0
        something = select.poll()
        something.register(self._core.output_fd(), select.POLLIN)
        something.register(self._reply_fd, select.POLLIN)
        while not self._stopping.is_set():
            something.poll(POLL_MS)
            if (batch := self._core.poll(0.0)) is not None:
                self._send_rows(batch)
            self._send_replies()
            now = time.monotonic()
            if now >= next_stats:
                next_stats = now + STATS_INTERVAL_S
                self._broadcast(Stats(dict(self._core.stats()), dict(self._snapshots)))

    def _send_replies(self) -> None:
        with contextlib.suppress(BlockingIOError):  # there are none
            os.eventfd_read(self._reply_fd)
        while self._replies:
            reply = self._replies.pop(0)
            self._send(worker_of(reply.id), encode(reply))

    def _broadcast(self, stats: Stats) -> None:
        data = encode(stats)
        for worker in range(len(self._outputs)):
            self._send(worker, data)

    def _send(self, worker: int, data: bytes) -> None:
        # A front end that is gone misses its rows; the others must not wait for it.
        with contextlib.suppress(zmq.Again):
            self._outputs[worker].send(data, zmq.DONTWAIT)

    def _send_rows(self, batch: CoreOutputBatch) -> None:
        outputs: dict[int, Outputs] = defaultdict(lambda: Outputs([]))
        for i, row in enumerate(batch.rows()):
            core_id, finish = row[0], row[2]
            message = outputs[worker_of(core_id)]
            if core_id in self._with_logprobs:
                message.logprobs[len(message.rows)] = list(batch.logprobs(i))
                prompt = batch.prompt_logprobs(i)
                if prompt:
                    message.prompt_logprobs[len(message.rows)] = list(prompt)
            if core_id in self._holding and (lease := batch.kv_lease(i)) is not None:
                message.kv_leases[len(message.rows)] = lease
            if finish:
                self._ended(core_id)
            if finish == FINISH_ERROR:
                message.errors[len(message.rows)] = batch.error(i)
            message.rows.append(row)
        for worker, message in outputs.items():
            self._send(worker, encode(message))

    def _ended(self, core_id: int) -> None:
        self._live.discard(core_id)
        self._with_logprobs.discard(core_id)
        self._holding.discard(core_id)
        if self._ruled is not None:
            self._ruled.ended(core_id)

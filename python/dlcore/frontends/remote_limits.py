"""Limits of API keys that several front ends share: the engine process counts for all."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from functools import partial

from dlcore.frontends.messages import worker_of_prefix
from dlcore.frontends.remote_core import RemoteCore
from dlcore.serve.limits import Limits, Refusal


class RemoteLimits:
    """A front end's side: the server's Limiter."""

    def __init__(self, core: RemoteCore, *, enabled: bool) -> None:
        self._core = core
        self.enabled = enabled

    async def take(self, name: str) -> Refusal | None:
        if not self.enabled:
            return None
        answer = asyncio.wrap_future(self._core.take(name))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:  # what is granted yet, nobody will give back
            answer.add_done_callback(partial(self._return_unused, name))
            raise

    def give_back(self, name: str) -> None:
        if self.enabled:
            self._core.give_back(name)

    def _return_unused(self, name: str, answer: asyncio.Future[Refusal | None]) -> None:
        if not answer.cancelled() and answer.result() is None:
            self.give_back(name)


class SharedLimits:
    """The engine process's side. Any thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._running: dict[int, Counter[str]] = {}
        self._gone: dict[int, int] = {}  # by worker, who died last: its last words may still come

    def take(self, holder: int, name: str) -> Refusal | None:
        """holder: the front end's id_prefix."""
        with self._lock:
            if holder == self._gone.get(worker_of_prefix(holder)):
                return 0.0, "this front end ended"
            refusal = self._limits.take(name)
            if refusal is None:
                self._running.setdefault(holder, Counter())[name] += 1
            return refusal

    def give_back(self, holder: int, name: str) -> None:
        with self._lock:
            running = self._running.get(holder, Counter())
            if not running[name]:
                return  # given back when it died
            running[name] -= 1
            self._limits.give_back(name)
            if not running[name]:
                del running[name]

    def forget(self, holder: int) -> None:
        """A front end died: none of its requests runs any more."""
        with self._lock:
            self._gone[worker_of_prefix(holder)] = holder
            for name in self._running.pop(holder, Counter()).elements():
                self._limits.give_back(name)

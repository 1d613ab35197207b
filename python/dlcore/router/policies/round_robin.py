"""Each node in turn."""

from __future__ import annotations

from collections.abc import Sequence

from dlcore.router.backend import Backend
from dlcore.router.policies.base import RoutingRequest


class RoundRobin:
    """Turns are counted, not positions, so nodes that come and go do not skew them."""

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}

    def choose(self, candidates: Sequence[Backend], request: RoutingRequest) -> Backend:
        # A newcomer starts level with the rest instead of taking every request at first.
        floor = min((self._turns[b.url] for b in candidates if b.url in self._turns), default=0)
        for backend in candidates:
            self._turns[backend.url] = max(self._turns.get(backend.url, floor), floor)
        chosen = min(candidates, key=lambda b: self._turns[b.url])
        self._turns[chosen.url] += 1
        return chosen

    def sent(self, backend: Backend, request: RoutingRequest) -> None:
        pass

    def forget(self, backend: Backend) -> None:
        self._turns.pop(backend.url, None)

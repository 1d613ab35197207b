"""The node that would finish the prompt first: open work plus what it lacks of this prompt."""

from __future__ import annotations

from collections.abc import Sequence

from dlcore.router.backend import Backend
from dlcore.router.policies.base import RoutingRequest
from dlcore.router.prefix_index import BLOCK_CHARACTERS, PrefixIndex

# What one open request weighs beside its prompt, in characters: its decode steps.
CHARACTERS_PER_RUNNING = 512.0


class PrefixAware:
    """Affinity and balance in one cost, so that a popular prefix spreads over nodes exactly
    when waiting for its home costs more than computing it elsewhere."""

    def __init__(self) -> None:
        self._index = PrefixIndex()

    def choose(self, candidates: Sequence[Backend], request: RoutingRequest) -> Backend:
        return min(candidates, key=lambda b: (self._cost(b, request), b.total_requests))

    def _cost(self, backend: Backend, request: RoutingRequest) -> float:
        cached = self._index.match(backend.url, request.blocks) * BLOCK_CHARACTERS
        open_work = backend.load + CHARACTERS_PER_RUNNING * backend.running
        return open_work + request.size - cached

    def sent(self, backend: Backend, request: RoutingRequest) -> None:
        self._index.add(backend.url, request.blocks)

    def forget(self, backend: Backend) -> None:
        self._index.forget(backend.url)

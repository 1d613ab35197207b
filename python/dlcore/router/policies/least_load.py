"""The node with the fewest open requests."""

from __future__ import annotations

from collections.abc import Sequence

from dlcore.router.backend import Backend
from dlcore.router.policies.base import RoutingRequest, least_loaded


class LeastLoad:
    def choose(self, candidates: Sequence[Backend], request: RoutingRequest) -> Backend:
        return least_loaded(candidates)

    def sent(self, backend: Backend, request: RoutingRequest) -> None:
        pass

    def forget(self, backend: Backend) -> None:
        pass

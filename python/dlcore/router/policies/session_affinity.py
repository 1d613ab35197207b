"""A session stays on its node while the node is there; rendezvous hashing picks it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dlcore.router.backend import Backend
from dlcore.router.policies.base import RoutingRequest, least_loaded


class SessionAffinity:
    """Needs no table: when a node leaves, only its own sessions move (Thaler and
    Ravishankar, "Using name-based mappings to increase hit rates", 1998)."""

    def choose(self, candidates: Sequence[Backend], request: RoutingRequest) -> Backend:
        session = request.session
        if session is None:
            return least_loaded(candidates)
        return max(candidates, key=lambda b: _weight(session, b.url))

    def sent(self, backend: Backend, request: RoutingRequest) -> None:
        pass

    def forget(self, backend: Backend) -> None:
        pass


def _weight(session: str, url: str) -> bytes:
    return hashlib.blake2b(f"{session}\0{url}".encode(), digest_size=8).digest()

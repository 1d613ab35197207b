"""What a policy sees of a request, and what it must decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dlcore.router.backend import Backend


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """`blocks` name the prompt's leading blocks, each chained to the ones before it
    (see prefix_index); two prompts that begin alike begin with equal blocks."""

    size: float  # characters of prompt
    blocks: tuple[bytes, ...] = ()
    session: str | None = None


class Policy(Protocol):
    """Event-loop thread only."""

    def choose(self, candidates: Sequence[Backend], request: RoutingRequest) -> Backend:
        """REQUIRES: candidates is not empty."""
        ...

    def sent(self, backend: Backend, request: RoutingRequest) -> None:
        """`backend` took the request: it will hold the prompt's KV."""
        ...

    def forget(self, backend: Backend) -> None:
        """`backend` left or restarted: its caches are empty."""
        ...


def least_loaded(candidates: Sequence[Backend]) -> Backend:
    """The node with the least open work; ties go to the one asked least so far."""
    return min(candidates, key=lambda b: (b.running, b.load, b.total_requests))

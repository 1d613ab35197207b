"""What every way of discovery gives the router: nodes that come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from dlcore.router.backend import Role


@dataclass(frozen=True, slots=True)
class Join:
    """A node is there (or came back as a new process); the router checks it before it is used."""

    url: str
    role: Role


@dataclass(frozen=True, slots=True)
class Leave:
    url: str


Change = Join | Leave


class Discovery(Protocol):
    def changes(self) -> AsyncIterator[Change]:
        """Runs until it is closed, or until no more can come. Never raises for a service that is
        down: what was known holds meanwhile."""
        ...

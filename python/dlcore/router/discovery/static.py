"""A list of nodes that never changes: no service needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from dlcore.router.backend import Role
from dlcore.router.discovery.base import Change, Join


class StaticDiscovery:
    def __init__(self, backends: Iterable[tuple[str, Role]]) -> None:
        self._backends = tuple(backends)

    async def changes(self) -> AsyncIterator[Change]:
        for url, role in self._backends:
            yield Join(url, role)

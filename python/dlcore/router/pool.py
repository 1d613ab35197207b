"""The nodes behind the router: who is there, who is well, who may take a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator

from dlcore.router.backend import Backend, Role, State

# Roles that answer clients; prefill nodes compute prompts for decode nodes (pd.py).
WHOLE = (Role.HYBRID, Role.DECODE)
# Who answers a client when none of WHOLE is up: a prefill node serves whole requests too.
LAST_RESORT = (Role.PREFILL,)
# Who had better answer with a single token: all of that work is the prompt's.
PROMPT_ALONE = (Role.HYBRID, Role.PREFILL)


class BackendPool:
    """Owns every Backend and is the only writer of their state. Event-loop thread only."""

    def __init__(self, *, failures_until_down: int, forget: Callable[[Backend], None]) -> None:
        self._backends: dict[str, Backend] = {}
        self._failures_until_down = failures_until_down
        self._forget = forget  # told when a node's caches cannot be trusted any more
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Backend]:
        return iter(list(self._backends.values()))

    def __len__(self) -> int:
        return len(self._backends)

    def get(self, url: str) -> Backend | None:
        return self._backends.get(url)

    def join(self, url: str, role: Role) -> Backend:
        """Adds a node (JOINING until a check succeeds), or returns the one known by `url`."""
        backend = self._backends.setdefault(url, Backend(url, role))
        backend.role = role
        if backend.state is State.DRAINING:
            backend.state = State.JOINING
        self._notify()
        return backend

    def drain(self, url: str) -> None:
        """New requests go elsewhere, running ones finish. Raises KeyError."""
        self._backends[url].state = State.DRAINING
        self._notify()

    def leave(self, url: str) -> None:
        """Streams that still flow finish, silent ones fail over at once. Raises KeyError."""
        backend = self._backends.pop(url)
        backend.state = State.DOWN
        self._forget(backend)
        self._notify()

    def succeeded(self, backend: Backend) -> None:
        backend.failures = 0
        if backend.state in (State.JOINING, State.DOWN) and backend.url in self._backends:
            backend.state = State.UP
            self._notify()

    def failed(self, backend: Backend, error: str) -> None:
        """Counts an error of a check or a request; enough in a row take the node down."""
        backend.failures += 1
        backend.total_failures += 1
        backend.last_error = error
        if backend.failures >= self._failures_until_down and backend.state is State.UP:
            backend.state = State.DOWN
            self._forget(backend)
            self._notify()

    def candidates(
        self, model: str | None, *, exclude: Collection[str] = (), roles: Collection[Role] = WHOLE
    ) -> list[Backend]:
        return [
            b
            for b in self._backends.values()
            if b.accepts and b.role in roles and b.url not in exclude and b.serves(model)
        ]

    def knows_model(self, model: str) -> bool:
        """False only when every node's models are known and none is called `model`."""
        return not self._backends or any(b.serves(model) for b in self._backends.values())

    async def wait_for_change(self, timeout_s: float) -> bool:
        """True when a node joined, left or changed state within the time."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

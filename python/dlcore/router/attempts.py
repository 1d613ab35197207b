"""The tries of one request: which node is next, and when to give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence

from dlcore.router.backend import Backend, Role
from dlcore.router.config import RouterConfig
from dlcore.router.policies import Policy, RoutingRequest
from dlcore.router.pool import LAST_RESORT, WHOLE, BackendPool
from dlcore.router.retry_budget import RetryBudget
from dlcore.router.upstream import NodeError

RETRY_PAUSE_S = 0.05


class NoBackendError(Exception):
    """No node could serve the request; the message says what was tried."""


class Attempts:
    """The tries of one request: which nodes failed it, and when to give up."""

    def __init__(
        self,
        config: RouterConfig,
        pool: BackendPool,
        policy: Policy,
        budget: RetryBudget,
        model: str | None,
        route: RoutingRequest,
        roles: Sequence[Collection[Role]] = (WHOLE, LAST_RESORT),
    ) -> None:
        """`roles`: of nodes that may answer; the first ones of which any is up."""
        self._config = config
        self._pool = pool
        self._policy = policy
        self._budget = budget
        self._model = model
        self._route = route
        self._roles = roles
        self._failed: set[str] = set()
        self._count = 0
        self._last_error = "no node is up"
        self._deadline = time.monotonic() + config.request_timeout_s

    async def next(self, *, resumable: bool = False) -> Backend:
        """A node to try. Waits for one to come up; raises NoBackendError in the end."""
        if self._count >= self._config.max_attempts:
            raise NoBackendError(f"{self._count} attempts failed; the last: {self._last_error}")
        if self._count > 0:
            if not self._budget.try_retry():
                raise NoBackendError(f"the retry budget is spent; the last: {self._last_error}")
            await asyncio.sleep(RETRY_PAUSE_S * 2 ** min(self._count - 1, 5))
        give_up = min(time.monotonic() + self._config.backend_wait_s, self._deadline)
        while True:
            backend = self._choose(resumable)
            if backend is not None:
                self._count += 1
                return backend
            left = give_up - time.monotonic()
            if left <= 0:
                raise NoBackendError(self._last_error)
            await self._pool.wait_for_change(left)

    def failed(self, backend: Backend, failure: NodeError) -> None:
        self._failed.add(backend.url)
        self._last_error = str(failure)

    def progressed(self) -> None:
        """The last attempt got somewhere: a long stream may outlive many nodes."""
        self._count = 1

    def _choose(self, resumable: bool) -> Backend | None:
        able = (self._able(roles, resumable) for roles in self._roles)
        candidates = next(filter(None, able), [])
        fresh = [b for b in candidates if b.url not in self._failed]
        # Nodes that failed once come after those that did not: better than giving up.
        candidates = fresh or candidates
        return self._policy.choose(candidates, self._route) if candidates else None

    def _able(self, roles: Collection[Role], resumable: bool) -> list[Backend]:
        candidates = self._pool.candidates(self._model, roles=roles)
        return [b for b in candidates if b.resumable or not resumable]

"""A bound on retries, so that a failing fleet is not finished off by its own router."""

from __future__ import annotations

import time
from collections.abc import Callable


class RetryBudget:
    """A token bucket filled by requests and by time; one token a retry."""

    def __init__(
        self,
        *,
        per_request: float,
        per_second: float,
        capacity: float = 1000.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_request = per_request
        self._per_second = per_second
        self._capacity = capacity
        self._now = now
        self._tokens = min(capacity, 10 * per_second)
        self._at = now()

    def request(self) -> None:
        self._gain(self._per_request)

    def try_retry(self) -> bool:
        """True when a retry may go ahead (and is paid for)."""
        now = self._now()
        self._gain((now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _gain(self, tokens: float) -> None:
        self._tokens = min(self._capacity, self._tokens + tokens)

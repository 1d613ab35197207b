"""Per-key limits: requests a minute (token bucket) and requests running at once."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from dlcore.serve.config import ServeConfig
from dlcore.serve.errors import send_error, too_many
from dlcore.serve.record import SCOPE_KEY, RequestRecord, was_passed_on

LIMITED_PREFIX = "/v1/"
Refusal = tuple[float, str]  # seconds to wait, why
_MAX_CALLERS = 10_000  # callers without a key are told apart by address: bound the table


@dataclass(slots=True)
class _Caller:
    tokens: float
    refilled: float
    running: int = 0


class Limiter(Protocol):
    """What a server's requests are admitted by, whichever way they come."""

    enabled: bool

    async def take(self, name: str) -> Refusal | None:
        """None when admitted; then `give_back` must follow."""
        ...

    def give_back(self, name: str) -> None: ...


class Limits:
    """`take` admits a request or says how many seconds to wait; `give_back` ends it.

    Not thread safe.
    """

    def __init__(
        self, per_minute: int, concurrent: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_minute = per_minute
        self._concurrent = concurrent
        self._clock = clock
        self._callers: OrderedDict[str, _Caller] = OrderedDict()

    @classmethod
    def of(cls, config: ServeConfig) -> Limits:
        return cls(config.requests_per_minute, config.max_concurrent_requests)

    @property
    def enabled(self) -> bool:
        return self._per_minute > 0 or self._concurrent > 0

    def take(self, name: str) -> Refusal | None:
        """None when admitted."""
        caller = self._caller(name)
        if self._concurrent and caller.running >= self._concurrent:
            return 1.0, f"{self._concurrent} requests of this key are running already"
        if self._per_minute:
            self._refill(caller)
            if caller.tokens < 1.0:
                wait = (1.0 - caller.tokens) * 60.0 / self._per_minute
                return wait, f"this key may send {self._per_minute} requests a minute"
            caller.tokens -= 1.0
        caller.running += 1
        return None

    def give_back(self, name: str) -> None:
        self._callers[name].running -= 1

    def _caller(self, name: str) -> _Caller:
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = _Caller(self._per_minute, self._clock())
            self._forget_idle()
        self._callers.move_to_end(name)
        return caller

    def _forget_idle(self) -> None:
        excess = len(self._callers) - _MAX_CALLERS
        if excess <= 0:
            return
        oldest = list(self._callers.items())[: excess + 64]
        for name, caller in oldest:
            if caller.running == 0:
                del self._callers[name]

    def _refill(self, caller: _Caller) -> None:
        now = self._clock()
        gained = (now - caller.refilled) * self._per_minute / 60.0
        caller.tokens = min(float(self._per_minute), caller.tokens + gained)
        caller.refilled = now


class OwnLimits:
    """The Limiter of a server of one process."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.enabled = limits.enabled

    async def take(self, name: str) -> Refusal | None:
        return self._limits.take(name)

    def give_back(self, name: str) -> None:
        self._limits.give_back(name)


class LimitMiddleware:
    def __init__(self, app: ASGIApp, limits: Limiter) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limited = scope["type"] == "http" and scope["path"].startswith(LIMITED_PREFIX)
        if not limited or was_passed_on(scope):
            await self.app(scope, receive, send)
            return
        record: RequestRecord = scope[SCOPE_KEY]
        name = record.key_name or record.client
        refusal = await self.limits.take(name)
        if refusal is not None:
            await send_error(send, too_many(refusal[1], refusal[0]), scope["path"])
            return
        try:
            await self.app(scope, receive, send)
        finally:
            self.limits.give_back(name)

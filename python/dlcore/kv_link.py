"""The core's part in moving KV, whether the core is in this process or behind a socket."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from dlcore import _core

logger = logging.getLogger("dlcore.kv")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedLease:
    """Where another engine keeps a prompt's KV. `endpoints`: one per transport it offers."""

    endpoints: tuple[str, ...]
    lease_id: int
    epoch: int
    num_tokens: int
    recompute_on_failure: bool


class KvLink(Protocol):
    """Thread safety: that of the core."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where this core's leases are read; empty unless it grants any."""
        ...

    def source(self, lease: NamedLease) -> Any:
        """What the core's `submit` takes as kv_source; None where the prompt is better computed
        here (said in the log)."""
        ...

    def release(self, lease_id: int, epoch: int) -> Future[bool]:
        """Ends a lease this core granted. False when it had ended."""
        ...


class LocalKvLink:
    """KvLink of a core in this process."""

    def __init__(self, core: _core.Engine) -> None:
        self._core = core
        self.endpoints = tuple(core.kv_endpoints())

    def source(self, lease: NamedLease) -> _core.KvSource | None:
        try:
            endpoint = self._core.choose_kv_endpoint(list(lease.endpoints))
        except _core.EngineUnavailable as error:
            logger.warning("computing a prompt here: %s", error)
            return None
        return _core.KvSource(
            leases=[(endpoint, lease.lease_id, lease.epoch)],
            num_tokens=lease.num_tokens,
            recompute_on_failure=lease.recompute_on_failure,
        )

    def release(self, lease_id: int, epoch: int) -> Future[bool]:
        answer: Future[bool] = Future()
        answer.set_result(self._core.release_kv_lease(lease_id, epoch))
        return answer

"""A front end's part in moving KV: it makes and reads tickets, the engine process moves KV."""

from __future__ import annotations

from concurrent.futures import Future

import msgspec

from dlcore.config import KvTransferConfig
from dlcore.frontends.remote_core import RemoteCore
from dlcore.kv_link import NamedLease
from dlcore.kv_peer import KvPeer


class KvFacts(msgspec.Struct):
    """What a front end must know of the engine's KvTransferConfig, and where its KV is served."""

    role: str
    key: bytes
    lease_ttl_s: float
    recompute_on_failure: bool
    endpoints: list[str]

    @classmethod
    def of(cls, config: KvTransferConfig, endpoints: tuple[str, ...]) -> KvFacts:
        return cls(
            role=config.role,
            key=config.key,
            lease_ttl_s=config.lease_ttl_s,
            recompute_on_failure=config.recompute_on_failure,
            endpoints=list(endpoints),
        )


class RemoteKvLink:
    """KvLink of a core in another process."""

    def __init__(self, core: RemoteCore, endpoints: tuple[str, ...]) -> None:
        self._core = core
        self.endpoints = endpoints

    def source(self, lease: NamedLease) -> NamedLease:
        """The engine process chooses the endpoint."""
        return lease

    def release(self, lease_id: int, epoch: int) -> Future[bool]:
        return self._core.release_kv_lease(lease_id, epoch)


def remote_kv_peer(core: RemoteCore, facts: KvFacts) -> KvPeer:
    config = KvTransferConfig(
        role=facts.role,
        key=facts.key,
        lease_ttl_s=facts.lease_ttl_s,
        recompute_on_failure=facts.recompute_on_failure,
    )
    return KvPeer(RemoteKvLink(core, tuple(facts.endpoints)), config)

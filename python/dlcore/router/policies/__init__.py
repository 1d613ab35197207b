"""Routing policies, one file each; `make_policy` finds them by name."""

from __future__ import annotations

from collections.abc import Callable

from dlcore.router.policies.base import Policy, RoutingRequest
from dlcore.router.policies.least_load import LeastLoad
from dlcore.router.policies.prefix_aware import PrefixAware
from dlcore.router.policies.round_robin import RoundRobin
from dlcore.router.policies.session_affinity import SessionAffinity

POLICIES: dict[str, Callable[[], Policy]] = {
    "round_robin": RoundRobin,
    "least_load": LeastLoad,
    "prefix_aware": PrefixAware,
    "session_affinity": SessionAffinity,
}

__all__ = ["POLICIES", "Policy", "RoutingRequest", "make_policy"]


def make_policy(name: str) -> Policy:
    """Raises ValueError naming the choices."""
    if name not in POLICIES:
        raise ValueError(f"policy: {name!r} is not one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()

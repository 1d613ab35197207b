"""A node as the membership service knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

ENTITY_TYPE = "service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """`beat` grows with every heartbeat; `incarnation` tells a restarted node from its forerunner.

    The service's own expiry takes a minute. A beat that stands still tells much sooner.
    """

    url: str  # what clients of the node use, e.g. http://10.0.0.2:8000
    kind: str  # hybrid, prefill, decode
    incarnation: str
    heartbeat_interval_s: float
    beat: int = 0

    @property
    def entity_id(self) -> str:
        """One node an address: a restarted one takes its forerunner's place."""
        return urlsplit(self.url).netloc

    def entity(self, scope: str) -> dict[str, Any]:
        """The body of /register."""
        parts = urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return {
            "entity_type": ENTITY_TYPE,
            "entity_id": self.entity_id,
            "kind": self.kind,
            "endpoint": {"host": parts.hostname, "port": port, "protocol": parts.scheme},
            "metadata": {
                "url": self.url,
                "incarnation": self.incarnation,
                "beat": self.beat,
                "heartbeat_interval_s": self.heartbeat_interval_s,
            },
            "scope": scope,
        }


def member_of(entity: Any) -> Member | None:
    """The node an entity of /list_entities describes; None for what is none of ours."""
    try:
        metadata = entity["metadata"]
        member = Member(
            url=str(metadata["url"]),
            kind=str(entity["kind"]),
            incarnation=str(metadata["incarnation"]),
            heartbeat_interval_s=float(metadata["heartbeat_interval_s"]),
            beat=int(metadata["beat"]),
        )
        is_url = _is_url(member.url)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return member if is_url and 0 < member.heartbeat_interval_s < 3600 else None


def _is_url(text: str) -> bool:
    """Raises ValueError for a host or port that is none."""
    parts = urlsplit(text)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0

"""Every knob of the router."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from dlcore.router.backend import Role
from dlcore.router.policies import POLICIES


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """Times in seconds. Raises ValueError naming the field and the fix."""

    backends: tuple[tuple[str, Role], ...] = ()  # (base URL, role)
    host: str = "127.0.0.1"
    port: int = 8080
    policy: str = "prefix_aware"
    api_keys: tuple[str, ...] = ()  # of clients; empty = none asked for
    backend_api_key: str | None = None  # what the router sends to nodes
    check_interval_s: float = 1.0
    check_timeout_s: float = 2.0
    failures_until_down: int = 2
    connect_timeout_s: float = 3.0
    request_timeout_s: float = 600.0
    max_attempts: int = 8  # of one request, the first included
    retry_ratio: float = 0.5  # retries the budget gains per request
    min_retries_per_s: float = 10.0  # and per second, so that a quiet router can retry too
    backend_wait_s: float = 30.0  # how long a request waits for any node to be up
    max_body_bytes: int = 32 << 20
    session_header: str = "x-session-id"
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy: {self.policy!r} is not one of {', '.join(sorted(POLICIES))}")
        for url, _ in self.backends:
            check_url(url)
        for name in ("check_interval_s", "check_timeout_s", "connect_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be positive, got {getattr(self, name)}")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts: must be at least 1, got {self.max_attempts}")


def check_url(url: str) -> str:
    """The URL without a trailing slash. Raises ValueError for one that is not http(s)."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"backend: {url!r} is not a URL such as http://10.0.0.2:8000")
    return url.rstrip("/")

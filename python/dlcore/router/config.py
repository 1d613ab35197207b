"""Every knob of the router: each field is a flag of `dlcore router`; `help` is its text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from dlcore.config import ConfigError
from dlcore.router.backend import Role
from dlcore.router.policies import POLICIES

DISCOVERIES = ("static", "ctrl")
POSITIVE = (
    "check_interval_s",
    "check_timeout_s",
    "connect_timeout_s",
    "request_timeout_s",
    "heartbeat_interval_s",
    "failures_until_down",
    "max_attempts",
    "max_body_bytes",
    "max_connections",
)


def _opt(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """Times in seconds. Raises ConfigError naming the field and the fix."""

    backends: tuple[tuple[str, Role], ...] = ()  # (base URL, role)
    host: str = _opt("127.0.0.1", "Address to listen on; loopback unless you say otherwise.")
    port: int = _opt(8080, "Port to listen on; 0 picks a free one.")
    policy: str = _opt(
        "prefix_aware", f"Which node takes a request: {', '.join(sorted(POLICIES))}."
    )
    session_header: str = _opt("x-session-id", "Header that names a client's session.")

    discovery: str = _opt("static", "static: the --backend list alone. ctrl: also dlslime-ctrl.")
    ctrl_url: str = _opt("http://127.0.0.1:4479", "dlslime-ctrl's URL, with --discovery ctrl.")
    scope: str = _opt("dlcore", "Which of dlslime-ctrl's scopes the nodes are in.")
    heartbeat_interval_s: float = _opt(
        5.0, "Seconds between heartbeats of nodes, as they were told."
    )

    api_key: tuple[str, ...] = _opt((), "Keys that clients must send; repeat for several.")
    api_key_file: str | None = _opt(None, "File with one API key per line (# starts a comment).")
    backend_api_key: str | None = _opt(None, "The key the router sends to nodes.")
    backend_api_key_file: str | None = _opt(None, "File whose first key the router sends to nodes.")
    ssl_certfile: str | None = _opt(None, "TLS certificate chain (PEM).")
    ssl_keyfile: str | None = _opt(None, "TLS private key (PEM).")

    check_interval_s: float = _opt(1.0, "Seconds between health checks of a node.")
    check_timeout_s: float = _opt(2.0, "Seconds a node may take to answer one.")
    failures_until_down: int = _opt(2, "Failed checks or requests in a row that take a node down.")
    connect_timeout_s: float = _opt(3.0, "Seconds a node may take to accept a connection.")
    request_timeout_s: float = _opt(600.0, "Seconds one attempt may take in all.")
    max_attempts: int = _opt(8, "Attempts of a request without progress, the first included.")
    retry_ratio: float = _opt(0.5, "Retries the budget gains per request.")
    min_retries_per_s: float = _opt(10.0, "Retries the budget gains per second.")
    backend_wait_s: float = _opt(30.0, "Seconds a request waits for any node to be up.")

    max_body_bytes: int = _opt(32 << 20, "Largest request body; bigger ones get 413.")
    max_connections: int = _opt(8192, "Connections beyond this are refused.")
    drain_timeout: float = _opt(0.0, "Seconds running requests get after SIGTERM (0 = no limit).")
    log_level: str = _opt("info", "debug, info, warning or error.")

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            known = ", ".join(sorted(POLICIES))
            raise ConfigError("policy", f"{self.policy!r} is not one of {known}")
        if self.discovery not in DISCOVERIES:
            known = ", ".join(DISCOVERIES)
            raise ConfigError("discovery", f"{self.discovery!r} is not one of {known}")
        for url, _ in self.backends:
            check_url(url)
        for name in POSITIVE:
            if getattr(self, name) <= 0:
                raise ConfigError(name, f"must be positive, got {getattr(self, name)}")


def check_url(url: str) -> str:
    """The URL without a trailing slash. Raises ConfigError for one that is not http(s)."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("backend", f"{url!r} is not a URL such as http://10.0.0.2:8000")
    return url.rstrip("/")


def parse_backend(text: str) -> tuple[str, Role]:
    """`URL` or `URL=ROLE`. Raises ConfigError."""
    url, has_role, role = text.rpartition("=")
    if not has_role:
        url, role = text, Role.HYBRID.value
    roles = [known.value for known in Role]
    if role not in roles:
        raise ConfigError("backend", f"{text!r}: the role must be one of {', '.join(roles)}")
    return check_url(url), Role(role)

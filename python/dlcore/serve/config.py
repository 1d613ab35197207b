"""Everything an operator can set about the HTTP server.

Each field is a flag of `dlcore serve` (underscores become dashes); `help` is its text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dlcore.config import ConfigError

MIB = 1024 * 1024
ANY_HOST = ("0.0.0.0", "::")
ROLES = ("hybrid", "prefill", "decode")
_AT_LEAST_ONE = frozenset(
    {
        "frontends",
        "max_body_bytes",
        "max_concurrent_batch_requests",
        "max_connections",
        "max_file_bytes",
        "max_prompts_per_request",
        "max_stream_bytes",
    }
)


def _opt(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    host: str = _opt("127.0.0.1", "Address to listen on; loopback unless you say otherwise.")
    port: int = _opt(8000, "Port to listen on; 0 picks a free one.")
    frontends: int = _opt(1, "HTTP processes in front of the engine; more for small, fast models.")
    grpc_port: int | None = _opt(None, "Also serve gRPC (dlcore.v1) here; 0 picks a free port.")
    served_model_name: tuple[str, ...] = _opt((), "Names clients may ask for; the first is shown.")

    api_key: tuple[str, ...] = _opt((), "Keys that clients must send; repeat for several.")
    api_key_file: str | None = _opt(None, "File with one API key per line (# starts a comment).")
    ssl_certfile: str | None = _opt(None, "TLS certificate chain (PEM).")
    ssl_keyfile: str | None = _opt(None, "TLS private key (PEM).")
    ssl_keyfile_password: str | None = _opt(None, "Password of the TLS private key.")
    ssl_ca_certs: str | None = _opt(
        None, "CA bundle; when set, clients must present a certificate."
    )
    allowed_origins: tuple[str, ...] = _opt((), "Browser origins allowed by CORS; `*` for any.")

    ctrl: str | None = _opt(None, "Register with the dlslime-ctrl server at this URL.")
    scope: str = _opt("dlcore", "The scope to register in; routers look in one scope.")
    advertise_url: str | None = _opt(None, "How routers reach this server; default: as it listens.")
    heartbeat_interval_s: float = _opt(5.0, "Seconds between heartbeats to dlslime-ctrl.")

    max_body_bytes: int = _opt(8 * MIB, "Largest request body; bigger ones get 413.")
    max_file_bytes: int = _opt(200 * MIB, "Largest file uploaded to /v1/files.")
    max_prompts_per_request: int = _opt(1024, "Most prompts in one /v1/completions request.")
    max_output_tokens: int = _opt(0, "Most tokens one request may ask for (0 = the model's).")
    max_stream_bytes: int = _opt(64 * MIB, "A stream that grows beyond this is ended.")
    max_connections: int = _opt(8192, "Connections beyond this are refused.")
    requests_per_minute: int = _opt(0, "Per API key; beyond it 429 (0 = no limit).")
    max_concurrent_requests: int = _opt(0, "Running at once per API key (0 = no limit).")

    request_timeout: float = _opt(0.0, "Seconds one request may take in all (0 = no limit).")
    header_timeout: float = _opt(15.0, "Seconds a client may take to send its headers.")
    body_timeout: float = _opt(60.0, "Seconds a client may take to send its body.")
    write_timeout: float = _opt(60.0, "Seconds a client may leave a response unread.")
    keep_alive_timeout: float = _opt(75.0, "Seconds an idle connection stays open.")
    drain_timeout: float = _opt(0.0, "Seconds running requests get after SIGTERM (0 = no limit).")

    role: str = _opt("hybrid", "hybrid, prefill or decode (docs/disaggregation.md).")
    transport: str = _opt("auto", "How KV moves: auto, cuda_ipc, shm, rdma, dlslime or tcp.")
    kv_host: str = _opt("127.0.0.1", "Address on which a prefill node serves KV.")
    kv_port: int = _opt(0, "Port on which a prefill node serves KV; 0 picks a free one.")
    kv_key_file: str | None = _opt(
        None, "File with the deployment's key; it is the API key too where none is set."
    )
    kv_lease_ttl: float = _opt(30.0, "Seconds a prefill node keeps KV for a decode node.")
    kv_pull_timeout: float = _opt(20.0, "Seconds without progress that end the fetching of KV.")
    kv_recompute: bool = _opt(True, "Compute a prompt whose KV cannot be fetched, or fail it.")

    access_log: bool = _opt(True, "Log one JSON line per request.")
    log_level: str = _opt("info", "debug, info, warning or error.")
    otlp_endpoint: str | None = _opt(None, "Send OpenTelemetry traces to this OTLP/HTTP URL.")
    data_dir: str = _opt("~/.local/share/dlcore", "Where /v1/files and /v1/batches are kept.")
    max_stored_responses: int = _opt(1000, "Responses kept in memory for /v1/responses.")
    max_concurrent_batch_requests: int = _opt(32, "Requests of /v1/batches running at once.")

    tool_call_parser: str | None = _opt(
        None, "How the model writes tool calls (hermes, ...); default: as its chat template does."
    )
    reasoning_parser: str | None = _opt(
        None, "How the model marks its reasoning (qwen3, ...); default: as its template does."
    )
    chat_template: str | None = _opt(None, "File with a chat template that replaces the model's.")
    trust_request_chat_template: bool = _opt(
        False, "Let clients send their own chat_template (it is sandboxed)."
    )

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser()

    def __post_init__(self) -> None:
        for name in ("port", "grpc_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 65535:
                raise ConfigError(name, f"must be in [0, 65535], got {value}")
        for item in fields(self):
            self._check_number(item.name, getattr(self, item.name))
        for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
            file = getattr(self, name)
            if file is not None and not Path(file).is_file():
                raise ConfigError(name, f"there is no file {file}")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError("ssl_certfile", "must be given together with ssl_keyfile")
        if self.ssl_ca_certs is not None and self.ssl_certfile is None:
            raise ConfigError("ssl_ca_certs", "asks clients for certificates: needs ssl_certfile")
        if self.role not in ROLES:
            raise ConfigError("role", f"must be one of {', '.join(ROLES)}; got {self.role!r}")
        if self.role != "hybrid" and self.kv_key_file is None:
            raise ConfigError("kv_key_file", f"is needed with role {self.role}, alike on all nodes")
        if self.heartbeat_interval_s <= 0:
            raise ConfigError("heartbeat_interval_s", "must be positive")
        if self.ctrl is not None and self.advertise_url is None and self.host in ANY_HOST:
            raise ConfigError("advertise_url", f"is needed with --ctrl where --host is {self.host}")
        if self.grpc_port is not None and self.ssl_keyfile_password is not None:
            raise ConfigError(
                "ssl_keyfile_password", "gRPC reads only unencrypted keys: decrypt the key file"
            )

    @staticmethod
    def _check_number(name: str, value: object) -> None:
        """Counts and seconds: 0 where it means "no limit", never less."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        least = 1 if name in _AT_LEAST_ONE else 0
        if not least <= value < float("inf"):  # false for NaN too
            raise ConfigError(name, f"must be at least {least} and finite, got {value}")

"""The deployment's key, and what the flags of `dlcore serve` say about moving KV."""

from __future__ import annotations

from pathlib import Path

from dlcore.config import MIN_KV_KEY_BYTES, ConfigError, KvTransferConfig
from dlcore.serve.config import ServeConfig


def read_kv_key(file: str) -> bytes:
    """The file's one line. Raises ConfigError when it cannot be read or is no secret."""
    try:
        key = Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("kv_key_file", f"cannot read {file}: {error}") from None
    if len(key) < MIN_KV_KEY_BYTES or len(key.split()) != 1:
        raise ConfigError(
            "kv_key_file",
            f"{file} must hold one line of at least {MIN_KV_KEY_BYTES} ASCII characters without "
            f"spaces, for example from `openssl rand -hex 32`",
        )
    return key.encode()


def kv_transfer_config(config: ServeConfig) -> KvTransferConfig:
    """REQUIRES: a role other than hybrid. Raises ConfigError."""
    assert config.kv_key_file is not None
    return KvTransferConfig(
        role=config.role,
        key=read_kv_key(config.kv_key_file),
        transport=config.transport,
        host=config.kv_host,
        port=config.kv_port,
        lease_ttl_s=config.kv_lease_ttl,
        pull_timeout_s=config.kv_pull_timeout,
        recompute_on_failure=config.kv_recompute,
    )

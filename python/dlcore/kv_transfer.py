"""Opens an engine's KV pool to other engines (Prefill-Decode disaggregation)."""

from __future__ import annotations

from torch import Tensor

from dlcore import _core
from dlcore.config import ConfigError, KvTransferConfig


def open_kv_transfer(
    core: _core.Engine, config: KvTransferConfig, kv_caches: tuple[Tensor, ...]
) -> None:
    """`kv_caches`: per layer [num_kv_blocks + 1, 2, num_kv_heads, block_size, D], which must
    stay until the core has stopped. Raises ConfigError, or EngineUnavailable where no transport
    can listen."""
    first = kv_caches[0]
    if not all(cache.is_contiguous() and cache.shape == first.shape for cache in kv_caches):
        raise ConfigError("role", f"{config.role}: this model's KV cache cannot be moved")
    num_blocks, num_planes, num_kv_heads, block_size, head_dim = first.shape
    try:
        options = _core.KvTransferOptions(
            layer_addresses=[cache.data_ptr() for cache in kv_caches],
            block_size=block_size,
            num_blocks=num_blocks - 1,  # the last one is scratch
            num_planes=num_planes,
            num_kv_heads=num_kv_heads,
            bytes_per_head=head_dim * first.element_size(),
            key=config.key,
            serves=config.role == "prefill",
            transports=[] if config.transport == "auto" else [config.transport],
            host=config.host,
            port=config.port,
            lease_ttl_s=config.lease_ttl_s,
            pull_timeout_s=config.pull_timeout_s,
            cuda_device=first.device.index if first.device.type == "cuda" else -1,
        )
    except ValueError as error:
        raise ConfigError("kv_transfer", str(error)) from None
    core.open_kv_transfer(options)

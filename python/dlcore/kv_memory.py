"""How many KV blocks a machine holds beside the model."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from dlcore.config import ConfigError, EngineConfig

CPU_KV_BYTES = 2**30  # default bound on the CPU, where memory belongs to others too
GRAPH_RESERVE_BYTES = 512 * 2**20  # graphs' own memory, libraries' workspaces, fragmentation


def kv_blocks_on_cpu(
    config: EngineConfig, block_bytes: int, max_model_len: int, max_num_seqs: int
) -> int:
    """At most what every sequence at full length needs, within a quarter of the free memory and
    CPU_KV_BYTES; at least one sequence at full length."""
    per_sequence = -(-max_model_len // config.block_size)
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bound = min(CPU_KV_BYTES, available // 4) // block_bytes
    if per_sequence * block_bytes > available:
        raise ConfigError(
            "max_model_len",
            f"{max_model_len} tokens need {per_sequence * block_bytes / 2**30:.1f} GiB of KV "
            f"cache, {available / 2**30:.1f} GiB of memory are free; use a smaller max_model_len",
        )
    return max(per_sequence, min(bound, per_sequence * max_num_seqs))


def kv_blocks_on_gpu(
    config: EngineConfig, block_bytes: int, max_model_len: int, run_largest: Callable[[], None]
) -> int:
    """What is left of gpu_memory_utilization after all that is in use now and the activations of
    `run_largest`, which runs the largest step once."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_largest()
    torch.cuda.synchronize()
    activations = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    budget = int(total * config.gpu_memory_utilization)
    left = budget - (total - free) - activations - GRAPH_RESERVE_BYTES
    num_blocks = left // block_bytes
    per_sequence = -(-max_model_len // config.block_size)
    if num_blocks < per_sequence:
        raise ConfigError(
            "gpu_memory_utilization",
            f"{config.gpu_memory_utilization} of {total / 2**30:.1f} GiB leaves "
            f"{max(left, 0) / 2**30:.2f} GiB for the KV cache; {max_model_len} tokens need "
            f"{per_sequence * block_bytes / 2**30:.2f} GiB. Raise gpu_memory_utilization, or "
            "lower max_model_len or max_num_batched_tokens",
        )
    return int(num_blocks)

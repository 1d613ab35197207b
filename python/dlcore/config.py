"""What an engine is asked to be. The only module that reads environment variables.

Flag names and habits follow vLLM's. Nothing here imports torch, so `--help` stays fast.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KV_ROLES = ("prefill", "decode")
MIN_KV_KEY_BYTES = 16
LOAD_FORMATS = ("auto", "safetensors", "dummy", "dummy_uniform", "null")
DEVICES = ("auto", "cpu", "cuda")
KV_CACHE_DTYPES = ("auto", "fp8", "fp8_e4m3")
ATTENTION_BACKENDS = ("auto", "torch", "triton")
OPTIONAL_COUNTS = (
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "num_kv_blocks",
    "num_threads",
)
DTYPE_NAMES: Mapping[str, str] = {
    "auto": "auto",
    "float32": "float32",
    "float": "float32",
    "float16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
}


class ConfigError(ValueError):
    """An option is wrong; `field` names it and the message says how to fix it."""

    def __init__(self, field_name: str, message: str) -> None:
        super().__init__(f"{field_name}: {message}")
        self.field = field_name


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTransferConfig:
    """A node's part in Prefill-Decode disaggregation (docs/disaggregation.md).

    A prefill node listens on `host`:`port` (0 = any free one) and keeps the KV of the prompts it
    computed for at most `lease_ttl_s`; a decode node pulls within `pull_timeout_s`.
    """

    role: str
    key: bytes = field(repr=False)  # the deployment's secret
    transport: str = "auto"
    host: str = "127.0.0.1"
    port: int = 0
    lease_ttl_s: float = 30.0
    pull_timeout_s: float = 20.0
    recompute_on_failure: bool = True

    def __post_init__(self) -> None:
        _check_choice("role", self.role, KV_ROLES)
        if len(self.key) < MIN_KV_KEY_BYTES:
            raise ConfigError("kv_key", f"must have at least {MIN_KV_KEY_BYTES} bytes")
        _check_int("kv_port", self.port, 0, 65535)
        for name in ("lease_ttl_s", "pull_timeout_s"):
            _check_float(f"kv_{name}", getattr(self, name), 0.05, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Every option of an engine. `None` means: chosen from the model and the machine.

    `num_kv_blocks` counts blocks of `block_size` tokens. On a GPU it defaults to what fits into
    `gpu_memory_utilization` of the device after weights and activations.
    """

    model: str
    tokenizer: str | None = None
    served_model_name: str | None = None
    dtype: str = "auto"
    load_format: str = "auto"
    device: str = "auto"
    device_index: int = 0
    num_threads: int | None = None  # CPU threads of a step, on device="cpu"
    seed: int = 0
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    block_size: int = 16
    num_kv_blocks: int | None = None
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    # Prompt tokens of a step that decodes; None or 0 = no limit.
    max_prefill_tokens_beside_decodes: int | None = None
    # A step that decodes is filled with prompts to a multiple of these tokens, some 3 a decode;
    # 0 = no limit. None: on a GPU what keeps gaps between tokens short (step_limits.py) unless the
    # bound above is given.
    mixed_step_tokens: int | None = None
    # False: that does not hold for a prompt whose answer may be the last to end. None: True, and
    # False for LLM, whose caller waits for all of them.
    hold_back_last_answers: bool | None = None
    max_waiting_requests: int = 0
    max_logprobs: int = 20
    enforce_eager: bool = False
    attention_backend: str = "auto"
    kv_cache_dtype: str = "auto"  # "auto": the model's; "fp8": E4M3, half of bfloat16's memory
    cudagraph_capture_sizes: tuple[int, ...] | None = None
    watchdog_timeout_s: float = 120.0
    kv_transfer: KvTransferConfig | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ConfigError("model", "must be a model folder or a Hugging Face repository id")
        _check_choice("load_format", self.load_format, LOAD_FORMATS)
        self._split_device()
        _check_choice("device", self.device, DEVICES)
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        if self.kv_cache_dtype == "fp8_e4m3":
            object.__setattr__(self, "kv_cache_dtype", "fp8")
        _check_choice("attention_backend", self.attention_backend, ATTENTION_BACKENDS)
        _check_choice("dtype", self.dtype, tuple(DTYPE_NAMES))
        object.__setattr__(self, "dtype", DTYPE_NAMES[self.dtype])
        for name in OPTIONAL_COUNTS:
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 1)
        if self.max_model_len is not None:
            _check_int("max_model_len", self.max_model_len, 2)
        _check_int("block_size", self.block_size, 1, 1024)
        for name in (
            "device_index",
            "seed",
            "long_prefill_token_threshold",
            "max_waiting_requests",
            "max_logprobs",
        ):
            _check_int(name, getattr(self, name), 0, 2**63 - 1 if name == "seed" else 2**31 - 1)
        for name in ("max_prefill_tokens_beside_decodes", "mixed_step_tokens"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 0)
        _check_float("gpu_memory_utilization", self.gpu_memory_utilization, 0.0, 1.0)
        if self.gpu_memory_utilization == 0.0:
            raise ConfigError("gpu_memory_utilization", "must be in (0, 1], for example 0.9")
        _check_float("watchdog_timeout_s", self.watchdog_timeout_s, 0.0, 1e9)
        self._check_capture_sizes()

    def _split_device(self) -> None:
        """ "cuda:1" is device "cuda" with device_index 1."""
        name, colon, index = str(self.device).partition(":")
        if not colon:
            return
        if name != "cuda" or not index.isascii() or not index.isdigit():
            raise ConfigError("device", f"must be cpu, cuda or like cuda:1; got {self.device!r}")
        if self.device_index not in (0, int(index)):
            raise ConfigError("device", f"{self.device} contradicts device_index")
        object.__setattr__(self, "device", name)
        object.__setattr__(self, "device_index", int(index))

    def _check_capture_sizes(self) -> None:
        if self.cudagraph_capture_sizes is None:
            return
        sizes = tuple(self.cudagraph_capture_sizes)
        for size in sizes:
            _check_int("cudagraph_capture_sizes", size, 1)
        if not sizes:
            raise ConfigError(
                "cudagraph_capture_sizes", "is empty; leave it out, or set enforce_eager=True"
            )
        object.__setattr__(self, "cudagraph_capture_sizes", tuple(sorted(set(sizes))))

    @property
    def model_name(self) -> str:
        """The name clients use for this model."""
        return self.served_model_name or self.model


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What was found in the model folder, with the engine's choices applied."""

    path: Path
    model_type: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    dtype: str  # "float32" | "float16" | "bfloat16"
    hf_config: Mapping[str, Any]
    kv_cache_dtype: str = "auto"  # "auto" (= dtype) | "fp8"
    # Sampling defaults the model's authors published (generation_config.json), by
    # SamplingParams field name: temperature, top_p, top_k, min_p, repetition_penalty.
    generation_defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The environment variables dlcore reads, all of them."""

    api_key: str | None = None  # DLCORE_API_KEY: default of --api-key
    log_level: str = "INFO"  # DLCORE_LOG_LEVEL

    @classmethod
    def read(cls) -> Environment:
        return cls(
            api_key=os.environ.get("DLCORE_API_KEY") or None,
            log_level=os.environ.get("DLCORE_LOG_LEVEL", "INFO").upper(),
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(name, f"must be one of {', '.join(choices)}; got {value!r}")


def _check_int(name: str, value: object, low: int, high: int = 2**31 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(name, f"must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ConfigError(name, f"must be in [{low}, {high}], got {value}")


def _check_float(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(name, f"must be a number, got {value!r}")
    if not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(name, f"must be in [{low}, {high}], got {value}")

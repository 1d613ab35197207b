"""build_engine: from a configuration to an engine that is ready to start."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from dlcore import _core
from dlcore.attention import choose_attention
from dlcore.capture import StepCapturer, decode_sizes
from dlcore.config import ConfigError, EngineConfig, ModelConfig
from dlcore.kv_memory import kv_blocks_on_cpu, kv_blocks_on_gpu
from dlcore.kv_transfer import open_kv_transfer
from dlcore.loader import draw_dummy_weights, draw_uniform_weights, load_safetensors
from dlcore.model_folder import read_model_config
from dlcore.model_runner import EagerStep, allocate_state, reset_state
from dlcore.models import CausalLM, build_model
from dlcore.ops.report_layer import DeviceReport, HostReport
from dlcore.step_buffers import Arenas, DeviceState
from dlcore.step_limits import MAX_NUM_SEQS, max_num_batched_tokens, mixed_step_tokens

# A thread is worth its synchronisation from about this much weight memory on; a small model is
# fastest on one, and leaves the others to the front end.
WEIGHT_BYTES_PER_THREAD = 2**25


@dataclass(slots=True, kw_only=True)
class LoadedEngine:
    """An engine whose model is loaded. The caller starts `core`.

    Keep this object until it is stopped: it owns the memory the steps read and write.
    """

    core: _core.Engine
    config: EngineConfig
    model_config: ModelConfig
    options: _core.EngineOptions
    startup_times: dict[str, float]  # seconds by phase
    keep_alive: tuple[object, ...] = field(default=(), repr=False)

    def stop(self) -> None:
        """Stops `core` and gives back what its steps read and wrote, so that the process can load
        another model. A step that hangs keeps its memory. Any thread; idempotent."""
        if not self.core.stop():
            return
        self.keep_alive = ()
        torch.cuda.empty_cache()


def build_engine(config: EngineConfig) -> LoadedEngine:
    """Loads the model of `config` and registers its steps with a new core, not yet started.

    load_format "null" loads nothing: its steps run no model (for timing front ends).
    Raises ConfigError or loader.CheckpointError naming what is wrong and the fix.
    """
    times: dict[str, float] = {}
    device = choose_device(config)
    model_config = read_model_config(config, device.type)
    if config.load_format == "null":
        if config.kv_transfer is not None:
            raise ConfigError("role", "load_format 'null' has no KV to move")
        options = engine_options(config, model_config, "cpu", [("paged", 1, 1, 0)], 1 << 16)
        core = _core.Engine(options, device="null")
        return LoadedEngine(
            core=core, config=config, model_config=model_config, options=options,
            startup_times=times,
        )  # fmt: skip
    with _phase(times, "load_weights"):
        model = load_model(config, model_config, device)
    if device.type == "cpu":
        _set_num_threads(config, model)
    groups = model.cache_groups(config.block_size)
    with _phase(times, "profile_memory"):
        num_blocks = config.num_kv_blocks or _num_kv_blocks(config, model_config, model, device)
    num_weights = sum(weight.numel() for weight in model.weight_map().values())
    options = engine_options(config, model_config, device.type, groups, num_blocks, num_weights)
    with _phase(times, "allocate"):
        arenas = Arenas.allocate(options, device)
        state = allocate_state(
            options, model.allocate_kv_caches(num_blocks, config.block_size), device
        )
        report = _device_report(config, device)
        core = _core.Engine(
            options,
            device=device.type,
            device_index=config.device_index,
            input_arena=arenas.input.data_ptr(),
            output_arena=arenas.output.data_ptr(),
            layer_word=0 if report is None else report.word.data_ptr(),
        )
        if config.kv_transfer is not None:
            open_kv_transfer(core, config.kv_transfer, state.kv_caches)
    with _phase(times, "capture"):
        steps = _register_steps(core, config, options, model, arenas, state, device, report)
    times["total"] = sum(times.values())
    return LoadedEngine(
        core=core,
        config=config,
        model_config=model_config,
        options=options,
        startup_times=times,
        keep_alive=(steps, arenas, state, model),
    )


def choose_device(config: EngineConfig) -> torch.device:
    """The torch device of config.device; "auto" is the GPU where there is one."""
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device", "cuda: torch finds no GPU; use device='cpu' or 'auto'")
    if config.device_index >= torch.cuda.device_count():
        raise ConfigError(
            "device_index", f"{config.device_index}: there are {torch.cuda.device_count()} GPUs"
        )
    torch.cuda.set_device(config.device_index)
    return torch.device("cuda", config.device_index)


def load_model(config: EngineConfig, model_config: ModelConfig, device: torch.device) -> CausalLM:
    attention = choose_attention(config.attention_backend, device)
    model = build_model(model_config, attention, device)
    if config.load_format == "dummy":
        draw_dummy_weights(model.weight_map(), config.seed)
    elif config.load_format == "dummy_uniform":
        draw_uniform_weights(model.weight_map(), config.seed)
    else:
        load_safetensors(model_config.path, model.weight_map(), model.ignored_weights())
    model.weights_loaded()
    return model


def _set_num_threads(config: EngineConfig, model: CausalLM) -> None:
    """torch has one setting for the process; the engine's thread takes it up."""
    weights = model.weight_map().values()
    num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    useful = 1 + num_bytes // WEIGHT_BYTES_PER_THREAD
    torch.set_num_threads(config.num_threads or min(torch.get_num_threads(), useful))


def engine_options(
    config: EngineConfig,
    model_config: ModelConfig,
    device_type: str,
    cache_groups: list[tuple[str, int, int, int]],
    num_kv_blocks: int,
    num_weights: int = 0,
) -> _core.EngineOptions:
    max_tokens = max_num_batched_tokens(config, device_type, model_config.max_model_len)
    return _core.EngineOptions(
        max_num_batched_tokens=max_tokens,
        # A step decodes no more sequences than it has tokens.
        max_num_seqs=min(config.max_num_seqs or MAX_NUM_SEQS[device_type], max_tokens),
        max_model_len=model_config.max_model_len,
        block_size=config.block_size,
        vocab_size=model_config.vocab_size,
        max_logprobs=config.max_logprobs,
        num_kv_blocks=num_kv_blocks,
        cache_groups=cache_groups,
        enable_prefix_caching=config.enable_prefix_caching,
        enable_chunked_prefill=config.enable_chunked_prefill,
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        max_prefill_tokens_beside_decodes=config.max_prefill_tokens_beside_decodes or 0,
        mixed_step_tokens=mixed_step_tokens(config, device_type, num_weights),
        hold_back_last_answers=config.hold_back_last_answers is not False,
        max_waiting_requests=config.max_waiting_requests,
        eos_token_ids=list(model_config.eos_token_ids),
        watchdog_timeout_s=config.watchdog_timeout_s,
    )


def _num_kv_blocks(
    config: EngineConfig, model_config: ModelConfig, model: CausalLM, device: torch.device
) -> int:
    groups = model.cache_groups(config.block_size)
    block_bytes = sum(layers * num_bytes for _, layers, num_bytes, _ in groups)
    options = engine_options(config, model_config, device.type, groups, 1)
    max_len, max_seqs = model_config.max_model_len, options.max_num_seqs
    if device.type == "cpu":
        return kv_blocks_on_cpu(config, block_bytes, max_len, max_seqs)
    # All the engine will hold but the KV cache must be there while memory is measured.
    arenas = Arenas.allocate(options, device)
    state = allocate_state(options, model.allocate_kv_caches(1, config.block_size), device)
    step = EagerStep(model=model, arenas=arenas, state=state)
    key = _core.StepKey("mixed", "full", options.max_num_batched_tokens, max_seqs)
    return kv_blocks_on_gpu(config, block_bytes, max_len, lambda: step(key))


def _register_steps(
    core: _core.Engine,
    config: EngineConfig,
    options: _core.EngineOptions,
    model: CausalLM,
    arenas: Arenas,
    state: DeviceState,
    device: torch.device,
    device_report: DeviceReport | None,
) -> object:
    """Tells `core` how to run steps; returns what must stay alive for it."""
    if device.type == "cpu" or config.enforce_eager:
        # A GPU's step has hardly begun when Python is through its layers.
        reports = device.type == "cpu" and lends_kv(config)
        report = HostReport(core.report_layers) if reports else None
        step = EagerStep(model=model, arenas=arenas, state=state, report=report)
        core.set_eager(step)
        return step
    capturer = StepCapturer.create(model, arenas, state, options.max_num_seqs, device_report)
    sizes = decode_sizes(options.max_num_seqs)
    if config.cudagraph_capture_sizes is not None:
        chosen = [n for n in config.cudagraph_capture_sizes if n < options.max_num_seqs]
        sizes = [*chosen, options.max_num_seqs]
    capturer.capture_all(core, options.max_num_batched_tokens, sizes)
    reset_state(state, arenas)
    torch.cuda.synchronize()
    return capturer


def lends_kv(config: EngineConfig) -> bool:
    return config.kv_transfer is not None and config.kv_transfer.role == "prefill"


def _device_report(config: EngineConfig, device: torch.device) -> DeviceReport | None:
    """For the captured graphs of a node that lends KV."""
    return DeviceReport.create(device) if lends_kv(config) and not config.enforce_eager else None


@contextmanager
def _phase(times: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[name] = time.perf_counter() - start

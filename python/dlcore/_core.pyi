"""The seam between dlcore's C++ runtime and Python."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy
import numpy.typing
from numpy.typing import NDArray


class EngineUnavailable(RuntimeError):
    pass

class QueueFull(RuntimeError):
    pass

def num_gpus() -> int:
    """GPUs the driver shows this process; 0 where there is no driver."""

class SamplingParams:
    """
    How one sequence is sampled (cpp/include/dlcore/request.h). Values are
    checked when a request is submitted.
    """

    def __init__(self, *, temperature: float = 1.0, top_p: float = 1.0, min_p: float = 0.0, top_k: int = 0, seed: int = 0, presence_penalty: float = 0.0, frequency_penalty: float = 0.0, repetition_penalty: float = 1.0, max_tokens: int = 16, min_tokens: int = 0, ignore_eos: bool = False, stop_token_ids: Sequence[int] = (), logit_bias: Sequence[tuple[int, float]] = (), allowed_token_ids: Sequence[int] = (), bad_words: Sequence[Sequence[int]] = (), logprobs: int = -1, prompt_logprobs: int = -1) -> None: ...

    @property
    def temperature(self) -> float: ...

    @temperature.setter
    def temperature(self, arg: float, /) -> None: ...

    @property
    def top_p(self) -> float: ...

    @top_p.setter
    def top_p(self, arg: float, /) -> None: ...

    @property
    def min_p(self) -> float: ...

    @min_p.setter
    def min_p(self, arg: float, /) -> None: ...

    @property
    def top_k(self) -> int: ...

    @top_k.setter
    def top_k(self, arg: int, /) -> None: ...

    @property
    def seed(self) -> int: ...

    @seed.setter
    def seed(self, arg: int, /) -> None: ...

    @property
    def presence_penalty(self) -> float: ...

    @presence_penalty.setter
    def presence_penalty(self, arg: float, /) -> None: ...

    @property
    def frequency_penalty(self) -> float: ...

    @frequency_penalty.setter
    def frequency_penalty(self, arg: float, /) -> None: ...

    @property
    def repetition_penalty(self) -> float: ...

    @repetition_penalty.setter
    def repetition_penalty(self, arg: float, /) -> None: ...

    @property
    def max_tokens(self) -> int: ...

    @max_tokens.setter
    def max_tokens(self, arg: int, /) -> None: ...

    @property
    def min_tokens(self) -> int: ...

    @min_tokens.setter
    def min_tokens(self, arg: int, /) -> None: ...

    @property
    def ignore_eos(self) -> bool: ...

    @ignore_eos.setter
    def ignore_eos(self, arg: bool, /) -> None: ...

    @property
    def stop_token_ids(self) -> list[int]: ...

    @stop_token_ids.setter
    def stop_token_ids(self, arg: Sequence[int], /) -> None: ...

    @property
    def logit_bias(self) -> list[tuple[int, float]]: ...

    @logit_bias.setter
    def logit_bias(self, arg: Sequence[tuple[int, float]], /) -> None: ...

    @property
    def allowed_token_ids(self) -> list[int]: ...

    @allowed_token_ids.setter
    def allowed_token_ids(self, arg: Sequence[int], /) -> None: ...

    @property
    def bad_words(self) -> list[list[int]]: ...

    @bad_words.setter
    def bad_words(self, arg: Sequence[Sequence[int]], /) -> None: ...

    @property
    def logprobs(self) -> int: ...

    @logprobs.setter
    def logprobs(self, arg: int, /) -> None: ...

    @property
    def prompt_logprobs(self) -> int: ...

    @prompt_logprobs.setter
    def prompt_logprobs(self, arg: int, /) -> None: ...

class EngineOptions:
    """
    Sizes and switches of one engine (cpp/include/dlcore/options.h).
    cache_groups: (kind, num_layers, bytes_per_block_per_layer, window), where kind
    is 'paged', 'window' or 'state'. Raises ValueError naming the field.
    """

    def __init__(self, *, max_num_batched_tokens: int, max_num_seqs: int, max_model_len: int, block_size: int, vocab_size: int, num_kv_blocks: int, cache_groups: Sequence[tuple[str, int, int, int]], max_logprobs: int = 20, max_bias_entries: int = 1024, enable_prefix_caching: bool = True, enable_chunked_prefill: bool = True, long_prefill_token_threshold: int = 0, max_prefill_tokens_beside_decodes: int = 0, mixed_step_tokens: int = 0, hold_back_last_answers: bool = True, max_waiting_requests: int = 0, async_scheduling: bool | None = None, eos_token_ids: Sequence[int] = (), hash_key: tuple[int, int] = (0, 0), watchdog_timeout_s: float = 120.0) -> None: ...

    @property
    def max_num_batched_tokens(self) -> int: ...

    @property
    def max_num_seqs(self) -> int: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def max_blocks_per_seq(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_logprobs(self) -> int: ...

    @property
    def num_kv_blocks(self) -> int: ...

    @property
    def async_scheduling(self) -> bool | None: ...

    @property
    def eos_token_ids(self) -> list[int]: ...

class StepKey:
    """Names one captured graph; counts are bucket sizes."""

    def __init__(self, kind: str, sampler: str, num_tokens: int, num_seqs: int, spec_len: int = 0) -> None: ...

    @property
    def kind(self) -> str: ...

    @property
    def sampler(self) -> str: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_seqs(self) -> int: ...

    @property
    def spec_len(self) -> int: ...

    def __eq__(self, other: object, /) -> bool: ...

    def __hash__(self) -> int: ...

    def __repr__(self) -> str: ...

class StepLayout:
    """Where each field of a step lies (cpp/include/dlcore/step_layout.h)."""

    def __init__(self, options: EngineOptions, key: StepKey) -> None: ...

    def inputs(self) -> list[tuple[str, str, int, tuple[int, ...]]]:
        """
        Fields of the input arena: name, 'int32' | 'int64' | 'float32', byte offset, shape.
        """

    def outputs(self) -> list[tuple[str, str, int, tuple[int, ...]]]:
        """Fields of the output arena, as `inputs`."""

    @property
    def tail_offset(self) -> int: ...

    @property
    def output_bytes(self) -> int: ...

    @staticmethod
    def max_input_bytes(options: EngineOptions) -> int: ...

    @staticmethod
    def max_output_bytes(options: EngineOptions) -> int: ...

class OutputBatch:
    """
    What a poll took: one row per sequence that got something.
    token_ids[token_offsets[i]:token_offsets[i+1]] are row i's new tokens. Arrays
    are read-only views. finish_reasons: 0 none, 1 stop, 2 length, 3 abort, 4 error.
    """

    def __len__(self) -> int: ...

    @property
    def request_ids(self) -> Annotated[NDArray[numpy.uint64], dict(shape=(None,), writable=False)]: ...

    @property
    def token_offsets(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,), writable=False)]: ...

    @property
    def token_ids(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,), writable=False)]: ...

    @property
    def finish_reasons(self) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,), writable=False)]: ...

    @property
    def stop_tokens(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,), writable=False)]:
        """The id that ended a row, -1 = none."""

    @property
    def cached_tokens(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,), writable=False)]:
        """
        Prompt tokens not computed here: cached, or pulled from another engine.
        """

    def rows(self) -> list[tuple[int, list[int], int, int, int]]:
        """
        (request_id, token_ids, finish_reason, stop_token, cached_tokens) of every row, in
        one call: what a front end that visits each row should use.
        """

    def logprobs(self, i: int) -> list[tuple[float, int, list[int], list[float]]]:
        """(logprob, rank, top_ids, top_logprobs) of each of the row's tokens."""

    def prompt_logprobs(self, i: int) -> list[tuple[float, int, list[int], list[float]]]:
        """As `logprobs`, of the prompt positions finished since the last output."""

    def kv_lease(self, i: int) -> tuple[int, int, int] | None:
        """
        (lease id, epoch, num_tokens) of the KV kept for the row's request (hold_kv), else None.
        """

    def error(self, i: int) -> str:
        """Why the row failed (finish reason 4), else ''."""

class ConstraintQueue:
    """
    Generated tokens of constrained requests, for the thread that computes masks.
    """

    def __init__(self) -> None: ...

    def fd(self) -> int:
        """A descriptor that is readable while updates wait."""

    def poll(self, timeout_s: float) -> list[tuple[int, int, list[int]]]:
        """
        (key, num_tokens_seen, new_tokens) of each constraint that advanced; empty on
        timeout. Releases the GIL while waiting. Answer with set_mask(num_tokens_seen, ...).
        """

class TokenConstraint:
    """
    Says which tokens may come next in one request. Its masks are set from Python; until
    the next mask is set the request is not scheduled, and no other request waits for it.
    `key` names it in `queue`'s updates. Set the first mask with num_tokens_seen=0.
    """

    def __init__(self, queue: ConstraintQueue, key: int, vocab_size: int) -> None: ...

    def set_mask(self, num_tokens_seen: int, mask: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], finished: bool = False) -> bool:
        """
        Bit i of word i // 32 = token i may follow the first `num_tokens_seen` generated
        tokens. mask: [ceil(vocab_size / 32)] uint32. finished: nothing but a stop token may
        follow. False when this is not the mask the request waits for. Any thread.
        """

    @property
    def num_tokens_seen(self) -> int:
        """Generated tokens so far: what the next mask must follow."""

    @property
    def ready(self) -> bool: ...

class KvSource:
    """
    KV of a prompt under another engine's leases. leases: (endpoint, lease id, epoch), one
    per rank of that engine; num_tokens: covered by them, from the first one on. When pulling
    fails the prompt is computed here, or (recompute_on_failure=False) the request ends with
    the error 'migration_failed: why'.
    """

    def __init__(self, *, leases: Sequence[tuple[str, int, int]], num_tokens: int, recompute_on_failure: bool = True) -> None: ...

class KvTransferOptions:
    """
    How an engine's KV pool looks and how others reach it (cpp/include/dlcore/kv_transfer.h).
    layer_addresses: of block 0 of each layer, [num_planes, num_kv_heads, block_size,
    bytes_per_head] bytes a block. cuda_device: the GPU they lie on, -1 = host memory.
    serves: put KV under leases and listen. transports: names, empty = all that work here.
    Raises ValueError naming the field.
    """

    def __init__(self, *, layer_addresses: Sequence[int], block_size: int, num_blocks: int, num_planes: int, num_kv_heads: int, bytes_per_head: int, key: bytes, serves: bool, transports: Sequence[str] = (), host: str = '127.0.0.1', port: int = 0, socket_dir: str = '/tmp', rdma_device: str = '', lease_ttl_s: float = 30.0, pull_timeout_s: float = 20.0, cuda_device: int = -1) -> None: ...

class Engine:
    """
    The loop: one native thread that schedules, launches and hands out tokens.
    device: 'cpu' (set_eager), 'cuda' (add_graphs, or set_eager for a model under
    development) or 'null' (no model: for benchmarks; each step takes null_step_us
    microseconds). Arenas are addresses of device memory of StepLayout.max_input_bytes and
    max_output_bytes that outlives the engine; on 'cpu' and 'null' both may be 0 and the
    engine allocates them. Raises ValueError naming the field, EngineUnavailable where the
    device is missing.
    """

    def __init__(self, options: EngineOptions, *, device: str, device_index: int = 0, input_arena: int = 0, output_arena: int = 0, layer_word: int = 0, null_step_us: int = 0) -> None: ...

    def add_graphs(self, key: StepKey, graph_execs: Sequence[int]) -> None:
        """
        Registers raw CUgraphExec handles, launched in order, for steps up to `key`.
        """

    def set_eager(self, step: Callable[[StepKey], None]) -> None:
        """
        Runs every step by calling `step` on the engine thread with exact counts. An
        exception fails all requests with its text.
        """

    def open_kv_transfer(self, options: KvTransferOptions) -> None:
        """
        Lets the engine give and take KV (submit's hold_kv and kv_source). Before start,
        once. The memory of the layout must outlive the engine. Raises ValueError naming the
        field, EngineUnavailable where a transport cannot listen.
        """

    def report_layers(self, layers_done: int) -> None:
        """
        From within set_eager's callable: layers [0, layers_done) of the KV of all tokens of
        its step are written, so readers of leases may have them. ValueError anywhere else.
        """

    def kv_endpoints(self) -> list[str]:
        """What other engines connect to; empty unless this one serves leases."""

    def choose_kv_endpoint(self, offered: Sequence[str]) -> str:
        """
        The fastest of another engine's endpoints this one can use. Raises EngineUnavailable
        saying why none fits.
        """

    def release_kv_lease(self, lease_id: int, epoch: int) -> bool:
        """Ends a lease this engine granted. False when it had ended already."""

    def start(self) -> None: ...

    def stop(self) -> bool:
        """
        Aborts what is left, joins the thread and drops the callable. Idempotent. False when a
        step hangs: its thread is left behind, and the arenas and the KV pool must stay.
        """

    def submit(self, request_id: int, prompt_token_ids: Sequence[int] | numpy.typing.NDArray[numpy.int32] | numpy.typing.NDArray[numpy.int64], params: SamplingParams, *, priority: int = 0, cache_salt: bytes = b'', constraint: TokenConstraint | None = None, resume_token_ids: Sequence[int] | numpy.typing.NDArray[numpy.int32] | numpy.typing.NDArray[numpy.int64] | None = None, kv_source: KvSource | None = None, hold_kv: bool = False) -> None:
        """
        Queues a request. prompt_token_ids: int32 or int64 array, or a sequence of ints.
        resume_token_ids: output tokens generated elsewhere, fewer than max_tokens; they count as
        this request's own, and its outputs hold only what follows them.
        kv_source: where to pull the prompt's KV from instead of computing it. hold_kv: when
        max_tokens ends the request its KV stays, under the lease OutputBatch.kv_lease names. Raises
        ValueError naming the field, QueueFull (max_waiting_requests), EngineUnavailable.
        """

    def submit_many(self, requests: Sequence[tuple[Any, ...]]) -> None:
        """
        Submits each (request_id, prompt_token_ids, params[, priority, cache_salt,
        constraint, resume_token_ids]) in order; stops at the first that raises.
        """

    def abort(self, request_ids: Sequence[int]) -> None:
        """Ends requests; each live one gets a last row with finish reason 3."""

    def poll(self, timeout_s: float) -> OutputBatch | None:
        """
        Takes all outputs there are, waiting up to timeout_s for the first; None on timeout
        and, at once, when the engine has ended. Releases the GIL while waiting.
        """

    def output_fd(self) -> int:
        """A descriptor that is readable while outputs wait; for event loops."""

    def stats(self) -> dict[str, float]:
        """The counters of cpp/include/dlcore/engine.h's EngineStats."""

    def is_healthy(self) -> bool:
        """False after a stall or a lost device."""

    def debug_string(self) -> str:
        """State for people, bounded in time."""

    @property
    def input_arena(self) -> int: ...

    @property
    def output_arena(self) -> int: ...

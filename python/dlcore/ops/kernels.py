"""The hand-written CUDA kernels: the one adapter to libdlcore_kernels.so.

cpp/kernels/kernels.h is the contract. Every function launches on the current stream, allocates
nothing but its result, and can be captured into a CUDA graph. Kernels run on Hopper (compute
capability 9.0) with bf16 activations; callers ask `usable` first and fall back to torch.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dlcore.ops.residual_stream import PendingNorm

LIBRARY_PATH = Path(__file__).resolve().parent.parent / "libdlcore_kernels.so"
MAX_SKINNY_TOKENS = 8  # with any weight, and twice as many in a layer of small ones:
SMALL_STREAM, SHORT_ROW = 1024, 2048  # values of the residual stream; of the product added to it
MULTIPROCESSORS = 132
ROPE_HEAD_DIMS = (64, 128, 256)
KV_CACHE_DTYPES = (torch.bfloat16, torch.float8_e4m3fn)
ARGMAX_STATE_BYTES = 16

_PTR, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


class _Sampling(ctypes.Structure):
    """struct dlk_sampling."""

    _fields_ = (
        ("logits", _PTR),
        ("temperature", _PTR),
        ("top_p", _PTR),
        ("min_p", _PTR),
        ("top_k", _PTR),
        ("seeds", _PTR),
        ("positions", _PTR),
        ("tokens", _PTR),
        ("workspace", _PTR),
        ("logits_are_bf16", _INT),
        ("num_rows", _INT),
        ("vocab", _INT),
    )


_PENDING = [_PTR, _INT, _FLOAT]  # rows of the stream, their size, eps
_SIGNATURES = {
    "dlk_skinny_linear": [_PTR, _PTR, _INT, _FLOAT, _PTR, _PTR, _PTR, *[_INT] * 6, _PTR],
    "dlk_tile_linear": [_PTR, _PTR, _PTR],
    "dlk_wide_linear": [_PTR, _INT, _PTR],
    "dlk_linear_argmax": [*[_PTR] * 6, _INT, _INT, _INT, _PTR],
    "dlk_rms_norm": [_PTR, _PTR, _FLOAT, _PTR, _INT, _INT, _PTR],
    "dlk_silu_and_mul": [_PTR, _PTR, *_PENDING, _INT, _INT, _PTR],
    "dlk_qk_norm_rope_kv_write": [*[_PTR] * 4, *_PENDING, *[_INT] * 5, _PTR],
    "dlk_decode_attention": [_PTR, _PTR],
    "dlk_decode_projected": [_PTR, _PTR, _PTR],
    "dlk_project_heads": [_PTR, _INT, _PTR, _PTR, _PTR, _INT, _INT, _INT, _PTR],
    "dlk_prefill_attention": [_PTR, _INT, _PTR],
    "dlk_mixed_attention": [_PTR, _PTR, _PTR],
    "dlk_begin_step": [*[_PTR] * 8, _INT, _INT, _PTR],
    "dlk_report_layer": [_PTR, _PTR, _INT, _PTR],
    "dlk_sample": [_PTR, _PTR],
    "dlk_logprobs_of": [_PTR, _PTR],
    "dlk_random_sample": [ctypes.POINTER(_Sampling), _PTR],
    "dlk_argmax": [_PTR, _INT, _PTR, _PTR, _PTR, _PTR, _INT, _INT, _PTR],
}


# Of functions that say a number of bytes.
_SIZE_SIGNATURES = {
    "dlk_decode_workspace_bytes": [_INT] * 3,
    "dlk_prefill_workspace_bytes": [],
    "dlk_norm_space_bytes": [],
}


@functools.cache
def _library() -> ctypes.CDLL | None:
    if not LIBRARY_PATH.exists():
        return None
    library = ctypes.CDLL(str(LIBRARY_PATH))
    for name, argtypes in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = argtypes
        function.restype = _INT
    for name, argtypes in _SIZE_SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = argtypes
        function.restype = ctypes.c_int64
    return library


@functools.cache
def _device_supported(index: int) -> bool:
    return torch.cuda.get_device_capability(index) == (9, 0)


def runs_on(device: torch.device) -> bool:
    """Whether the kernels were built, and run on this device."""
    if device.type != "cuda" or _library() is None:
        return False
    return _device_supported(device.index or 0)


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels run on these tensors: their device, and bf16."""
    return all(t.dtype == torch.bfloat16 for t in tensors) and runs_on(tensors[0].device)


def _function(name: str) -> Callable[..., int]:
    library = _library()
    if library is None:
        raise RuntimeError(f"{LIBRARY_PATH} is missing: build dlcore where nvcc is installed")
    function: Callable[..., int] = getattr(library, name)
    return function


def _call(name: str, *args: object) -> None:
    error = _function(name)(*args, torch.cuda.current_stream().cuda_stream)
    if error != 0:
        raise RuntimeError(f"{name} failed: CUDA error {error}")


def _ptr(t: Tensor | None) -> int | None:
    if t is None:
        return None
    if not t.is_contiguous():
        raise ValueError(f"a kernel's argument must be contiguous, not of strides {t.stride()}")
    return t.data_ptr()


def call(name: str, *args: object) -> None:
    """Launches a kernel; a struct goes by its address."""
    _call(name, *(ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in args))


def size(name: str, *args: int) -> int:
    """What a function of the library that launches nothing says: a number of bytes."""
    return _function(name)(*args)


pointer = _ptr


def pending_norm(norm: PendingNorm | None) -> tuple[int | None, int, float]:
    """As arguments of a kernel: stream_rows, stream_dim, stream_eps."""
    return (None, 0, 0.0) if norm is None else (_ptr(norm.stream), norm.stream.shape[1], norm.eps)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x: [..., D] -> x / rms(x) * weight."""
    out = torch.empty_like(x)
    dim = x.shape[-1]
    rows = x.numel() // dim
    _call("dlk_rms_norm", _ptr(x), _ptr(weight), eps, _ptr(out), rows, dim)
    return out


def silu_and_mul(x: Tensor, pending: PendingNorm | None = None) -> Tensor:
    """x: [T, 2I] (gate, up) -> silu(gate) * up: [T, I]. pending: of x."""
    rows, inner = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, inner)
    _call("dlk_silu_and_mul", _ptr(x), _ptr(out), *pending_norm(pending), rows, inner)
    return out


def skinny_linear_pays(num_tokens: int, weight: Tensor) -> bool:
    """Whether `skinny_linear` takes this product and is the fastest (measured on an H100)."""
    return 1 <= num_tokens <= MAX_SKINNY_TOKENS and weight.shape[1] % 64 == 0


def skinny_linear_adds(num_tokens: int, weight: Tensor) -> bool:
    """The same for 9 to 16 tokens, where the product is added to the residual stream.

    Each block reads all of x, so rows are short: Qwen3-0.6B's product after attention, not the one
    after SwiGLU. That one is followed by the projection, beside whose tiles attention begins.
    """
    rows, k = weight.shape
    return _is_twice_skinny(num_tokens, k) and rows <= SMALL_STREAM and k <= SHORT_ROW


def skinny_linear_norms(num_tokens: int, weight: Tensor) -> bool:
    """The same for 9 to 16 tokens, where the product is of the stream's norm and such a product, or
    none, came before it."""
    k = weight.shape[1]
    return _is_twice_skinny(num_tokens, k) and k <= SMALL_STREAM


def _is_twice_skinny(num_tokens: int, k: int) -> bool:
    return MAX_SKINNY_TOKENS < num_tokens <= 2 * MAX_SKINNY_TOKENS and k % 64 == 0


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm_eps: float | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
    out_dtype: torch.dtype = torch.bfloat16,
    row_tiles: int = 0,
) -> Tensor:
    """x: [T <= 16, K], weight: [N, K] -> [T, N] = x weight^T + bias + residual.

    norm_eps: x is RMS-normalised first, without a weight.
    swiglu: weight is [2N, K], gates then ups, and the result silu(gate) * up: [T, N].
    row_tiles: 8-row tiles of the weight per block; 0 = choose.
    """
    num_tokens, k = x.shape
    n = weight.shape[0] // (2 if swiglu else 1)
    out = torch.empty(num_tokens, n, dtype=out_dtype, device=x.device)
    _call(
        "dlk_skinny_linear",
        *[_ptr(x), _ptr(weight), int(norm_eps is not None), norm_eps or 0.0],
        *[_ptr(bias), _ptr(residual), _ptr(out)],
        *[num_tokens, n, k, int(swiglu), int(out_dtype == torch.float32), row_tiles],
    )
    return out


def begin_step(
    arena: Tensor,
    header: Tensor,
    token_ids: Tensor,
    token_seq: Tensor,
    seq_slots: Tensor,
    last_tokens: Tensor,
    block_tables: Tensor,
) -> Tensor:
    """Applies the arena's block updates and returns the token ids to embed: [T] int64."""
    num_tokens = token_ids.shape[0]
    out = torch.empty(num_tokens, dtype=torch.int64, device=arena.device)
    _call(
        "dlk_begin_step",
        *[_ptr(arena), _ptr(header), _ptr(token_ids), _ptr(token_seq), _ptr(seq_slots)],
        *[_ptr(last_tokens), _ptr(block_tables), _ptr(out), num_tokens, seq_slots.shape[0]],
    )
    return out


def report_layer(header: Tensor, layer_word: Tensor, layers_done: int) -> None:
    """layer_word [1] int64, pinned host memory: that the step of `header` did so many layers."""
    _call("dlk_report_layer", _ptr(header), _ptr(layer_word), layers_done)


def argmax_workspace(max_num_rows: int, device: torch.device) -> Tensor:
    return torch.zeros(max_num_rows * ARGMAX_STATE_BYTES, dtype=torch.uint8, device=device)


def argmax_supports(logits: Tensor) -> bool:
    """Whether `argmax` and `random_sample` take these logits."""
    return (
        logits.dtype in (torch.bfloat16, torch.float32)
        and logits.shape[1] % 8 == 0
        and runs_on(logits.device)
    )


def argmax(
    logits: Tensor, row_slots: Tensor, sampled: Tensor, last_tokens: Tensor, workspace: Tensor
) -> None:
    """sampled [S] and last_tokens[row_slots] = argmax of logits [S, vocab], bf16 or float32.

    The lowest index of equals; rows whose slot is -1 get -1.
    """
    _call(
        "dlk_argmax",
        *[_ptr(logits), int(logits.dtype == torch.bfloat16), _ptr(row_slots), _ptr(sampled)],
        *[_ptr(last_tokens), _ptr(workspace), logits.shape[0], logits.shape[1]],
    )


def random_sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    workspace: Tensor,
) -> Tensor:
    """ops.sample.random_sample, from float32 or bf16 logits [S, vocab]; `argmax_workspace`."""
    num_rows, vocab = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    args = _Sampling(
        logits=_ptr(logits),
        temperature=_ptr(temperature),
        top_p=_ptr(top_p),
        min_p=_ptr(min_p),
        top_k=_ptr(top_k),
        seeds=_ptr(seeds),
        positions=_ptr(positions),
        tokens=_ptr(tokens),
        workspace=_ptr(workspace),
        logits_are_bf16=int(logits.dtype == torch.bfloat16),
        num_rows=num_rows,
        vocab=vocab,
    )
    _call("dlk_random_sample", args)
    return tokens

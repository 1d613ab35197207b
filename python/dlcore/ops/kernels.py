"""The hand-written CUDA kernels: the one adapter to libdlcore_kernels.so.

cpp/kernels/kernels.h is the contract. Every function launches on the current stream, allocates
nothing but its result, and can be captured into a CUDA graph. Kernels run on Hopper (compute
capability 9.0) with bf16 activations; callers ask `usable` first and fall back to torch.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

LIBRARY_PATH = Path(__file__).resolve().parent.parent / "libdlcore_kernels.so"
MAX_SKINNY_TOKENS = 8
MULTIPROCESSORS = 132
ROPE_HEAD_DIMS = (64, 128, 256)
ATTENTION_HEAD_DIMS = (64, 128)
KV_CACHE_DTYPES = (torch.bfloat16, torch.float8_e4m3fn)
PREFILL_HEAD_DIM = 128
MAX_ATTENTION_GROUP = 8  # query heads per KV head
MAX_PROJECTED_GROUP = 7  # the same where decode attention starts from the projection
MAX_PROJECTED_PAIRS = 8 * MULTIPROCESSORS  # of a sequence and a KV head
MAX_ATTENTION_SEQS = 3072
ARGMAX_STATE_BYTES = 16

_PTR, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


class _Attention(ctypes.Structure):
    """struct dlk_attention."""

    _fields_ = (
        ("q", _PTR),
        ("kv_cache", _PTR),
        ("kv_scales", _PTR),
        ("out", _PTR),
        ("query_start_loc", _PTR),
        ("seq_lens", _PTR),
        ("seq_slots", _PTR),
        ("block_tables", _PTR),
        ("workspace", _PTR),
        ("scale", _FLOAT),
        ("num_tokens", _INT),
        ("num_seqs", _INT),
        ("num_q_heads", _INT),
        ("num_kv_heads", _INT),
        ("head_dim", _INT),
        ("block_size", _INT),
        ("max_blocks", _INT),
        ("num_blocks", _INT),
    )


class _NewTokens(ctypes.Structure):
    """struct dlk_new_tokens."""

    _fields_ = (
        ("qkv", _PTR),
        ("q_weight", _PTR),
        ("k_weight", _PTR),
        ("cos_sin", _PTR),
        ("positions", _PTR),
        ("slot_mapping", _PTR),
        ("eps", _FLOAT),
    )


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


_SIGNATURES = {
    "dlk_skinny_linear": [_PTR, _PTR, _PTR, _FLOAT, _PTR, _PTR, _PTR, *[_INT] * 6, _PTR],
    "dlk_tile_linear": [_PTR, _PTR, _PTR],
    "dlk_wide_linear": [_PTR, _INT, _PTR],
    "dlk_rms_norm": [_PTR, _PTR, _PTR, _FLOAT, _PTR, _PTR, _INT, _INT, _PTR],
    "dlk_silu_and_mul": [_PTR, _PTR, _INT, _INT, _PTR],
    "dlk_qk_norm_rope_kv_write": [
        *[_PTR, _PTR, _PTR, _FLOAT],
        *[_PTR] * 6,
        *[_INT] * 5,
        _PTR,
    ],
    "dlk_decode_attention": [ctypes.POINTER(_Attention), _PTR],
    "dlk_decode_projected": [ctypes.POINTER(_Attention), ctypes.POINTER(_NewTokens), _PTR],
    "dlk_prefill_attention": [ctypes.POINTER(_Attention), _INT, _PTR],
    "dlk_begin_step": [*[_PTR] * 8, _INT, _INT, _PTR],
    "dlk_report_layer": [_PTR, _PTR, _INT, _PTR],
    "dlk_sample": [_PTR, _PTR],
    "dlk_logprobs_of": [_PTR, _PTR],
    "dlk_random_sample": [ctypes.POINTER(_Sampling), _PTR],
    "dlk_argmax": [_PTR, _INT, _PTR, _PTR, _PTR, _PTR, _INT, _INT, _PTR],
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
    library.dlk_decode_workspace_bytes.argtypes = [_INT] * 3
    library.dlk_decode_workspace_bytes.restype = ctypes.c_int64
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


def _call(name: str, *args: object) -> None:
    library = _library()
    if library is None:
        raise RuntimeError(f"{LIBRARY_PATH} is missing: build dlcore where nvcc is installed")
    error = getattr(library, name)(*args, torch.cuda.current_stream().cuda_stream)
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


pointer = _ptr


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [..., D] -> x / rms(x) * weight."""
    out = torch.empty_like(x)
    dim = x.shape[-1]
    rows = x.numel() // dim
    _call("dlk_rms_norm", _ptr(x), None, _ptr(weight), eps, _ptr(out), None, rows, dim)
    return out


def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x, residual: [T, D] -> (rms_norm(x + residual), x + residual)."""
    out, total = torch.empty_like(x), torch.empty_like(x)
    _call(
        "dlk_rms_norm",
        *[_ptr(x), _ptr(residual), _ptr(weight), eps, _ptr(out), _ptr(total)],
        *[x.shape[0], x.shape[1]],
    )
    return out, total


def silu_and_mul(x: Tensor) -> Tensor:
    """x: [T, 2I] (gate, up) -> silu(gate) * up: [T, I]."""
    rows, inner = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, inner)
    _call("dlk_silu_and_mul", _ptr(x), _ptr(out), rows, inner)
    return out


def skinny_linear_pays(num_tokens: int, weight: Tensor) -> bool:
    """Whether `skinny_linear` takes this product and is the fastest (measured on an H100)."""
    return 1 <= num_tokens <= MAX_SKINNY_TOKENS and weight.shape[1] % 64 == 0


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
    out_dtype: torch.dtype = torch.bfloat16,
    row_tiles: int = 0,
) -> Tensor:
    """x: [T <= 8, K], weight: [N, K] -> [T, N] = rms_norm(x) weight^T + bias + residual.

    swiglu: weight is [2N, K], gates then ups, and the result silu(gate) * up: [T, N].
    row_tiles: 8-row tiles of the weight per block; 0 = choose.
    """
    num_tokens, k = x.shape
    n = weight.shape[0] // (2 if swiglu else 1)
    out = torch.empty(num_tokens, n, dtype=out_dtype, device=x.device)
    _call(
        "dlk_skinny_linear",
        *[_ptr(x), _ptr(weight), _ptr(norm_weight), eps, _ptr(bias), _ptr(residual), _ptr(out)],
        *[num_tokens, n, k, int(swiglu), int(out_dtype == torch.float32), row_tiles],
    )
    return out


def qk_norm_rope_kv_write(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    kv_cache: Tensor,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """qkv [T, (Hq + 2 Hk) D] -> q [T, Hq, D]; writes k and v to kv_cache [blocks, 2, Hk, bs, D].

    kv_scales: [2, Hk] float32 for an E4M3 cache (stored value * scale = value).
    """
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    num_tokens = qkv.shape[0]
    num_q_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    q = qkv.new_empty(num_tokens, num_q_heads, head_dim)
    _call(
        "dlk_qk_norm_rope_kv_write",
        *[_ptr(qkv), _ptr(q_weight), _ptr(k_weight), eps, _ptr(cos_sin), _ptr(positions)],
        *[_ptr(slot_mapping), _ptr(kv_cache), _ptr(kv_scales), _ptr(q)],
        *[num_tokens, num_q_heads, num_kv_heads, block_size, head_dim],
    )
    return q


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedKv:
    """What paged attention reads besides q. S sequences, some of them padding (length 0)."""

    kv_cache: Tensor  # [blocks, 2, Hk, block_size, D] bf16, or E4M3 with scales
    kv_scales: Tensor | None  # [2, Hk] float32
    query_start_loc: Tensor | None  # int32 [S + 1]; None: sequence s is token s
    seq_lens: Tensor  # int32 [S]
    seq_slots: Tensor | None  # int32 [S], rows of block_tables; None: sequence s is row s
    block_tables: Tensor  # int32 [*, max_blocks]
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTokens:
    """A decode step's tokens as the projection leaves them, one for each sequence, and how q and k
    are normalised and rotated: see ops.qk_norm_rope_kv_write."""

    qkv: Tensor  # [S, (Hq + 2 Hk) D]
    q_weight: Tensor | None
    k_weight: Tensor | None
    eps: float
    cos_sin: Tensor
    positions: Tensor
    slot_mapping: Tensor


def decode_workspace(
    max_num_seqs: int, num_kv_heads: int, head_dim: int, device: torch.device
) -> Tensor:
    """The memory `decode_attention` merges its splits in: one for an engine, never shared by two
    launches at once."""
    library = _library()
    if library is None:
        raise RuntimeError(f"{LIBRARY_PATH} is missing: build dlcore where nvcc is installed")
    size = library.dlk_decode_workspace_bytes(max_num_seqs, num_kv_heads, head_dim)
    return torch.zeros(size, dtype=torch.uint8, device=device)


def _attention_args(
    q: Tensor | None, kv: PagedKv, out: Tensor, workspace: Tensor | None
) -> _Attention:
    _, _, num_kv_heads, block_size, head_dim = kv.kv_cache.shape
    return _Attention(
        q=_ptr(q),
        kv_cache=_ptr(kv.kv_cache),
        kv_scales=_ptr(kv.kv_scales),
        out=_ptr(out),
        query_start_loc=_ptr(kv.query_start_loc),
        seq_lens=_ptr(kv.seq_lens),
        seq_slots=_ptr(kv.seq_slots),
        block_tables=_ptr(kv.block_tables),
        workspace=_ptr(workspace),
        scale=kv.scale,
        num_tokens=out.shape[0],
        num_seqs=kv.seq_lens.shape[0],
        num_q_heads=out.shape[1],
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        max_blocks=kv.block_tables.shape[1],
        num_blocks=kv.kv_cache.shape[0],
    )


def decode_attention(q: Tensor, kv: PagedKv, out: Tensor, workspace: Tensor) -> None:
    """Fills out [T, Hq, D] for the sequences with exactly one query token; leaves the others."""
    _call("dlk_decode_attention", _attention_args(q, kv, out, workspace))


def decode_projected_pays(num_seqs: int, num_q_heads: int, kv_cache: Tensor) -> bool:
    """Whether `decode_projected` is faster than the two kernels, in whole steps on an H100.

    From 17 to 64 tokens a wide model's projection takes all shared memory, so that no block of
    attention begins beside it: then the kernel between them hides how attention's blocks begin. And
    where warps have several pairs, the tokens' share is too small for a gain.
    """
    num_kv_heads, head_dim = kv_cache.shape[2], kv_cache.shape[4]
    if num_seqs * num_kv_heads > MAX_PROJECTED_PAIRS:
        return False
    is_wide = num_q_heads * head_dim >= 4096
    return not (is_wide and 16 < num_seqs <= 64 and kv_cache.dtype == torch.bfloat16)


def decode_projected(tokens: NewTokens, kv: PagedKv, workspace: Tensor) -> Tensor:
    """qk_norm_rope_kv_write and decode_attention in one kernel: [S, Hq, D].

    kv.query_start_loc is None; Hq / Hk is at most MAX_PROJECTED_GROUP.
    """
    _, _, num_kv_heads, _, head_dim = kv.kv_cache.shape
    num_seqs, width = tokens.qkv.shape
    out = tokens.qkv.new_empty(num_seqs, width // head_dim - 2 * num_kv_heads, head_dim)
    args = _NewTokens(
        qkv=_ptr(tokens.qkv),
        q_weight=_ptr(tokens.q_weight),
        k_weight=_ptr(tokens.k_weight),
        cos_sin=_ptr(tokens.cos_sin),
        positions=_ptr(tokens.positions),
        slot_mapping=_ptr(tokens.slot_mapping),
        eps=tokens.eps,
    )
    _call("dlk_decode_projected", _attention_args(None, kv, out, workspace), args)
    return out


def prefill_workspace(device: torch.device) -> Tensor:
    """The counters by which `prefill_attention` hands out its work: as `decode_workspace`."""
    return torch.zeros(2, dtype=torch.int32, device=device)


def prefill_attention(
    q: Tensor, kv: PagedKv, out: Tensor, workspace: Tensor, *, min_query: int = 1
) -> None:
    """Fills out [T, Hq, D] for the sequences with more than `min_query` query tokens; causal.

    D is PREFILL_HEAD_DIM, `kv.query_start_loc` given.
    """
    _call("dlk_prefill_attention", _attention_args(q, kv, out, workspace), min_query)


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

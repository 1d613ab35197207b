"""The CUDA kernels of paged attention: structs dlk_attention and dlk_new_tokens."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.kernels import pointer

ATTENTION_HEAD_DIMS = (64, 128)
PREFILL_HEAD_DIM = 128
MAX_ATTENTION_GROUP = 8  # query heads per KV head
MAX_PROJECTED_GROUP = 7  # the same where decode attention starts from the projection
MAX_PROJECTED_PAIRS = 8 * kernels.MULTIPROCESSORS  # of a sequence and a KV head
MAX_ATTENTION_SEQS = 3072

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
        ("only_last_is_new", _INT),
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
    only_last_is_new: bool = True  # of a sequence with one query: the rest is of earlier steps


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTokens:
    """How q and k of a step's tokens are normalised and rotated, and where k and v go."""

    q_weight: Tensor | None  # [D]; None: no q/k norm
    k_weight: Tensor | None  # likewise
    eps: float
    cos_sin: Tensor  # [max_positions, D] float32: cosines of D/2 frequencies, then their sines
    positions: Tensor  # int32 [T]
    slot_mapping: Tensor  # int32 [T], block * block_size + offset; -1 = padding: nothing is kept

    def as_argument(self, qkv: Tensor | None = None) -> _NewTokens:
        return _NewTokens(
            qkv=pointer(qkv),
            q_weight=pointer(self.q_weight),
            k_weight=pointer(self.k_weight),
            cos_sin=pointer(self.cos_sin),
            positions=pointer(self.positions),
            slot_mapping=pointer(self.slot_mapping),
            eps=self.eps,
        )


def decode_workspace(
    max_num_seqs: int, num_kv_heads: int, head_dim: int, device: torch.device
) -> Tensor:
    """The memory `decode_attention` merges its splits in: one for an engine, never shared by two
    launches at once."""
    size = kernels.size("dlk_decode_workspace_bytes", max_num_seqs, num_kv_heads, head_dim)
    return torch.zeros(size, dtype=torch.uint8, device=device)


def _attention_args(
    q: Tensor | None, kv: PagedKv, out: Tensor, workspace: Tensor | None
) -> _Attention:
    _, _, num_kv_heads, block_size, head_dim = kv.kv_cache.shape
    return _Attention(
        q=pointer(q),
        kv_cache=pointer(kv.kv_cache),
        kv_scales=pointer(kv.kv_scales),
        out=pointer(out),
        query_start_loc=pointer(kv.query_start_loc),
        seq_lens=pointer(kv.seq_lens),
        seq_slots=pointer(kv.seq_slots),
        block_tables=pointer(kv.block_tables),
        workspace=pointer(workspace),
        scale=kv.scale,
        num_tokens=out.shape[0],
        num_seqs=kv.seq_lens.shape[0],
        num_q_heads=out.shape[1],
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        max_blocks=kv.block_tables.shape[1],
        num_blocks=kv.kv_cache.shape[0],
        only_last_is_new=kv.only_last_is_new,
    )


def decode_attention(q: Tensor, kv: PagedKv, out: Tensor, workspace: Tensor) -> None:
    """Fills out [T, Hq, D] for the sequences with exactly one query token; leaves the others."""
    kernels.call("dlk_decode_attention", _attention_args(q, kv, out, workspace))


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


def decode_projected(qkv: Tensor, tokens: NewTokens, kv: PagedKv, workspace: Tensor) -> Tensor:
    """qk_norm_rope_kv_write and decode_attention in one kernel: [S, Hq, D].

    qkv: [S, (Hq + 2 Hk) D], a token for each sequence. kv.query_start_loc is None; Hq / Hk is at
    most MAX_PROJECTED_GROUP.
    """
    _, _, num_kv_heads, _, head_dim = kv.kv_cache.shape
    num_seqs, width = qkv.shape
    out = qkv.new_empty(num_seqs, width // head_dim - 2 * num_kv_heads, head_dim)
    kernels.call(
        "dlk_decode_projected", _attention_args(None, kv, out, workspace), tokens.as_argument(qkv)
    )
    return out


def prefill_workspace(device: torch.device) -> Tensor:
    """Counters by which `prefill_attention` hands out its work, and results of those who share a
    tile of it: as `decode_workspace`."""
    size = kernels.size("dlk_prefill_workspace_bytes")
    return torch.zeros(size, dtype=torch.uint8, device=device)


def prefill_attention(
    q: Tensor, kv: PagedKv, out: Tensor, workspace: Tensor, *, min_query: int = 1
) -> None:
    """Fills out [T, Hq, D] for the sequences with more than `min_query` query tokens; causal.

    D is PREFILL_HEAD_DIM, `kv.query_start_loc` given.
    """
    kernels.call("dlk_prefill_attention", _attention_args(q, kv, out, workspace), min_query)


def mixed_attention_pays(num_tokens: int, num_seqs: int) -> bool:
    """Whether `mixed_attention` is faster than the two one after the other, by the step's buckets,
    in whole steps on an H100: not where decode attention takes most of the time, as it has fewer
    multiprocessors beside the other, nor where there is next to none of it."""
    is_mostly_decodes = num_seqs > 64 and num_tokens < 16 * num_seqs
    is_mostly_prompts = num_tokens >= 256 * num_seqs
    return not is_mostly_decodes and not is_mostly_prompts


def mixed_attention(
    q: Tensor, kv: PagedKv, out: Tensor, workspace: Tensor, prefill_workspace: Tensor
) -> None:
    """`decode_attention` and, beside it, `prefill_attention`: fills out [T, Hq, D]."""
    args = _attention_args(q, kv, out, workspace)
    kernels.call("dlk_mixed_attention", args, pointer(prefill_workspace))

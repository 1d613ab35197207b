# Triton has no type stubs, and a kernel's arguments are pointers, not tensors.
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,unused-ignore"
"""Paged attention in Triton, for any GPU and head size.

Mixed steps: FlashAttention-2 over blocks of queries, the heads of a group packed beside their
tokens. Decode steps: the context split over several programs, then combined. Grids are fixed at
capture; lengths are read on the device and surplus programs leave at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlcore.step_buffers import DeviceState, Queries

try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU build of torch
    triton = None
    tl = None

QUERY_ROWS = 64  # rows (tokens x heads of a group) of one program of the mixed kernel
KV_TILE = 64
TARGET_PROGRAMS = 264  # two per SM of an H100
MAX_SPLITS = 32


def available() -> bool:
    return triton is not None


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    queries: Queries,
    state: DeviceState,
    scale: float,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """See AttentionBackend."""
    q = q.contiguous()
    if queries.kind == "decode":
        return _decode(q, kv_cache, queries, state, scale, kv_scales)
    out = torch.empty_like(q)
    prefill_attention(q, kv_cache, queries, state, scale, kv_scales, out, min_query=0)
    return out


def prefill_attention(
    q: Tensor,
    kv_cache: Tensor,
    queries: Queries,
    state: DeviceState,
    scale: float,
    kv_scales: Tensor | None,
    out: Tensor,
    *,
    min_query: int,
) -> None:
    """Fills out [T, Hq, D] for the sequences with more than `min_query` query tokens."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = kv_cache.shape[2], kv_cache.shape[3]
    group = num_heads // num_kv_heads
    rows = max(QUERY_ROWS, triton.next_power_of_2(group))
    block_q = rows // group
    _mixed_kernel[(num_tokens // block_q + queries.num_seqs, num_kv_heads)](
        q,
        kv_cache,
        kv_scales,
        out,
        queries.query_start_loc,
        queries.seq_lens,
        queries.seq_slots,
        state.block_tables,
        queries.num_seqs,
        state.block_tables.stride(0),
        scale,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        PADDED_DIM=triton.next_power_of_2(head_dim),
        BLOCK_SIZE=block_size,
        ROWS=rows,
        BLOCK_Q=block_q,
        TILE=KV_TILE,
        PRECISION=_precision(q),
        MIN_QUERY=min_query,
        num_warps=4,
    )


def _decode(
    q: Tensor,
    kv_cache: Tensor,
    queries: Queries,
    state: DeviceState,
    scale: float,
    kv_scales: Tensor | None,
) -> Tensor:
    num_seqs, num_heads, head_dim = q.shape
    num_kv_heads, block_size = kv_cache.shape[2], kv_cache.shape[3]
    splits = _num_splits(num_seqs * num_kv_heads)
    partial = torch.empty(num_seqs, num_heads, splits, head_dim, device=q.device)
    lse = torch.empty(num_seqs, num_heads, splits, device=q.device)
    out = torch.empty_like(q)
    padded_dim = triton.next_power_of_2(head_dim)
    _decode_kernel[(num_seqs, num_kv_heads, splits)](
        q,
        kv_cache,
        kv_scales,
        partial,
        lse,
        queries.seq_lens,
        queries.seq_slots,
        state.block_tables,
        state.block_tables.stride(0),
        scale,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        PADDED_DIM=padded_dim,
        BLOCK_SIZE=block_size,
        ROWS=max(16, triton.next_power_of_2(num_heads // num_kv_heads)),
        TILE=KV_TILE,
        SPLITS=splits,
        PRECISION=_precision(q),
        num_warps=4,
    )
    _combine_kernel[(num_seqs, num_heads)](
        partial, lse, out, NUM_HEADS=num_heads, HEAD_DIM=head_dim, PADDED_DIM=padded_dim,
        SPLITS=splits, num_warps=4,
    )  # fmt: skip
    return out


def _num_splits(num_programs: int) -> int:
    splits = 1
    while splits < MAX_SPLITS and num_programs * splits < TARGET_PROGRAMS:
        splits *= 2
    return splits


def _precision(q: Tensor) -> str:
    return "ieee" if q.dtype == torch.float32 else "tf32"


if triton is not None:

    @triton.jit
    def _sequence_of(query_start_loc, program, num_seqs, BLOCK_Q: tl.constexpr):  # noqa: N803
        """The last sequence i with query_start_loc[i] // BLOCK_Q + i <= program."""
        low = 0
        high = num_seqs
        while low < high:
            middle = (low + high) // 2
            first = tl.load(query_start_loc + middle) // BLOCK_Q + middle
            if first <= program:
                low = middle + 1
            else:
                high = middle
        return low - 1

    @triton.jit
    def _attend(
        q,
        kv_cache,
        kv_scales,
        block_table,
        kv_head,
        start,
        end,
        limit,
        scale,
        NUM_KV_HEADS: tl.constexpr,  # noqa: N803
        HEAD_DIM: tl.constexpr,  # noqa: N803
        PADDED_DIM: tl.constexpr,  # noqa: N803
        BLOCK_SIZE: tl.constexpr,  # noqa: N803
        ROWS: tl.constexpr,  # noqa: N803
        TILE: tl.constexpr,  # noqa: N803
        PRECISION: tl.constexpr,  # noqa: N803
    ):
        """Online softmax of q [ROWS, PADDED_DIM] over positions start .. end - 1; row r sees those
        below limit[r]. Returns the unnormalised output, the row maxima (base 2) and the sums."""
        dims = tl.arange(0, PADDED_DIM)
        dim_ok = dims < HEAD_DIM
        row_max = tl.full([ROWS], -1.0e30, tl.float32)
        row_sum = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, PADDED_DIM], tl.float32)
        page: tl.constexpr = BLOCK_SIZE * HEAD_DIM
        scale_log2 = scale * 1.4426950408889634
        v_scale = 1.0
        if kv_scales is not None:
            scale_log2 *= tl.load(kv_scales + kv_head)
            v_scale = tl.load(kv_scales + NUM_KV_HEADS + kv_head)
        for tile in range(start, end, TILE):
            position = tile + tl.arange(0, TILE)
            inside = position < end
            block = tl.load(block_table + position // BLOCK_SIZE, mask=inside, other=0)
            base = (block.to(tl.int64) * 2 * NUM_KV_HEADS + kv_head) * page
            base += (position % BLOCK_SIZE) * HEAD_DIM
            pointers = kv_cache + base[:, None] + dims[None, :]
            ok = inside[:, None] & dim_ok[None, :]
            k = tl.load(pointers, mask=ok, other=0.0).to(q.dtype)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
            seen = inside[None, :] & (position[None, :] < limit[:, None])
            scores = tl.where(seen, scores, -1.0e30)
            new_max = tl.maximum(row_max, tl.max(scores, axis=1))
            weights = tl.where(seen, tl.exp2(scores - new_max[:, None]), 0.0)
            shrink = tl.exp2(row_max - new_max)
            v = tl.load(pointers + NUM_KV_HEADS * page, mask=ok, other=0.0).to(q.dtype)
            acc = acc * shrink[:, None]
            acc += tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
            row_sum = row_sum * shrink + tl.sum(weights, axis=1)
            row_max = new_max
        return acc * v_scale, row_max, row_sum

    @triton.jit
    def _mixed_kernel(
        q_ptr,
        kv_cache,
        kv_scales,
        out_ptr,
        query_start_loc,
        seq_lens,
        seq_slots,
        block_tables,
        num_seqs,
        table_stride,
        scale,
        NUM_HEADS: tl.constexpr,  # noqa: N803
        NUM_KV_HEADS: tl.constexpr,  # noqa: N803
        HEAD_DIM: tl.constexpr,  # noqa: N803
        PADDED_DIM: tl.constexpr,  # noqa: N803
        BLOCK_SIZE: tl.constexpr,  # noqa: N803
        ROWS: tl.constexpr,  # noqa: N803
        BLOCK_Q: tl.constexpr,  # noqa: N803
        TILE: tl.constexpr,  # noqa: N803
        PRECISION: tl.constexpr,  # noqa: N803
        MIN_QUERY: tl.constexpr,  # noqa: N803
    ):
        program = tl.program_id(0)
        kv_head = tl.program_id(1)
        group: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
        seq = _sequence_of(query_start_loc, program, num_seqs, BLOCK_Q)
        query_start = tl.load(query_start_loc + seq)
        num_queries = tl.load(query_start_loc + seq + 1) - query_start
        first = (program - (query_start // BLOCK_Q + seq)) * BLOCK_Q
        seq_len = tl.load(seq_lens + seq)
        if (first < num_queries) & (num_queries > MIN_QUERY) & (seq_len > 0):
            rows = tl.arange(0, ROWS)
            token = first + rows // group
            row_ok = (rows // group < BLOCK_Q) & (token < num_queries)
            dims = tl.arange(0, PADDED_DIM)
            head = kv_head * group + rows % group
            index = ((query_start + token).to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
            offsets = index[:, None] + dims[None, :]
            ok = row_ok[:, None] & (dims < HEAD_DIM)[None, :]
            q = tl.load(q_ptr + offsets, mask=ok, other=0.0)
            limit = seq_len - num_queries + token + 1
            end = tl.minimum(seq_len, seq_len - num_queries + first + BLOCK_Q)
            slot = tl.load(seq_slots + seq).to(tl.int64)
            acc, _, row_sum = _attend(
                q, kv_cache, kv_scales, block_tables + slot * table_stride, kv_head,
                0, end, limit, scale,
                NUM_KV_HEADS, HEAD_DIM, PADDED_DIM, BLOCK_SIZE, ROWS, TILE, PRECISION,
            )  # fmt: skip
            out = acc / tl.maximum(row_sum, 1.0e-20)[:, None]
            tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=ok)

    @triton.jit
    def _decode_kernel(
        q_ptr,
        kv_cache,
        kv_scales,
        partial_ptr,
        lse_ptr,
        seq_lens,
        seq_slots,
        block_tables,
        table_stride,
        scale,
        NUM_HEADS: tl.constexpr,  # noqa: N803
        NUM_KV_HEADS: tl.constexpr,  # noqa: N803
        HEAD_DIM: tl.constexpr,  # noqa: N803
        PADDED_DIM: tl.constexpr,  # noqa: N803
        BLOCK_SIZE: tl.constexpr,  # noqa: N803
        ROWS: tl.constexpr,  # noqa: N803
        TILE: tl.constexpr,  # noqa: N803
        SPLITS: tl.constexpr,  # noqa: N803
        PRECISION: tl.constexpr,  # noqa: N803
    ):
        seq = tl.program_id(0)
        kv_head = tl.program_id(1)
        split = tl.program_id(2)
        group: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
        rows = tl.arange(0, ROWS)
        row_ok = rows < group
        row = seq * NUM_HEADS + kv_head * group + rows
        seq_len = tl.load(seq_lens + seq)
        span = tl.cdiv(tl.cdiv(seq_len, SPLITS), TILE) * TILE
        start = split * span
        end = tl.minimum(seq_len, start + span)
        if start < end:
            dims = tl.arange(0, PADDED_DIM)
            ok = row_ok[:, None] & (dims < HEAD_DIM)[None, :]
            offsets = row.to(tl.int64)[:, None] * HEAD_DIM + dims[None, :]
            q = tl.load(q_ptr + offsets, mask=ok, other=0.0)
            slot = tl.load(seq_slots + seq).to(tl.int64)
            limit = tl.zeros([ROWS], tl.int32) + seq_len
            acc, row_max, row_sum = _attend(
                q, kv_cache, kv_scales, block_tables + slot * table_stride, kv_head,
                start, end, limit, scale,
                NUM_KV_HEADS, HEAD_DIM, PADDED_DIM, BLOCK_SIZE, ROWS, TILE, PRECISION,
            )  # fmt: skip
            place = (row * SPLITS + split).to(tl.int64)
            out_offsets = place[:, None] * HEAD_DIM + dims[None, :]
            tl.store(partial_ptr + out_offsets, acc / row_sum[:, None], mask=ok)
            tl.store(lse_ptr + place, row_max + tl.log2(row_sum), mask=row_ok)
        else:
            tl.store(lse_ptr + row * SPLITS + split, tl.full([ROWS], -1.0e30, tl.float32), row_ok)

    @triton.jit
    def _combine_kernel(
        partial_ptr,
        lse_ptr,
        out_ptr,
        NUM_HEADS: tl.constexpr,  # noqa: N803
        HEAD_DIM: tl.constexpr,  # noqa: N803
        PADDED_DIM: tl.constexpr,  # noqa: N803
        SPLITS: tl.constexpr,  # noqa: N803
    ):
        row = (tl.program_id(0) * NUM_HEADS + tl.program_id(1)).to(tl.int64)
        splits = tl.arange(0, SPLITS)
        dims = tl.arange(0, PADDED_DIM)
        lse = tl.load(lse_ptr + row * SPLITS + splits)
        used = lse > -1.0e29
        weights = tl.where(used, tl.exp2(lse - tl.max(lse, axis=0)), 0.0)
        ok = used[:, None] & (dims < HEAD_DIM)[None, :]
        offsets = (row * SPLITS + splits)[:, None] * HEAD_DIM + dims[None, :]
        partial = tl.load(partial_ptr + offsets, mask=ok, other=0.0)
        total = tl.maximum(tl.sum(weights, axis=0), 1.0e-20)
        out = tl.sum(partial * weights[:, None], axis=0) / total
        out_offsets = row * HEAD_DIM + dims
        tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=dims < HEAD_DIM)

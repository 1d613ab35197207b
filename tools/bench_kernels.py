"""Times the CUDA kernels against their floor: python3 tools/bench_kernels.py [filter].

Each op is captured into a CUDA graph of many launches over rotating inputs larger than L2, and the
graph's replays are timed with events; the median is printed. Floor: the bytes the op must move at
the card's copy bandwidth, or its operations at the card's matrix rate (--bandwidth, --flops).
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator

import torch
from decode_step import DecodeStep
from kernel_inputs import EPS, SHAPES, VOCAB, PagedQueries, Shape, bf16, paged_kv, state_of
from kernel_timing import Case, sets_for, time_us
from torch import Tensor
from torch.nn import functional

from dlcore.attention import triton_attention
from dlcore.ops import attention_kernels, kernels, sample_kernels
from dlcore.ops.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from dlcore.ops.tile_linear import linear_tile, tile_linear
from dlcore.step_buffers import SamplerBuffers


def linear_cases(tokens: tuple[int, ...], row_tiles: tuple[int, ...]) -> Iterator[Case]:
    for shape in SHAPES:
        heads = (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim
        matrices = (
            ("qkv", heads, shape.hidden),
            ("o", shape.hidden, shape.q_heads * shape.head_dim),
            ("gate_up", shape.inner, shape.hidden),
            ("down", shape.hidden, shape.inner),
            ("lm_head", VOCAB, shape.hidden),
        )
        for name, n, k in matrices:
            rows = n * (2 if name == "gate_up" else 1)
            num_sets = sets_for(2.0 * rows * k)
            weights = [bf16(rows, k, scale=0.02) for _ in range(num_sets)]
            for m in tokens:
                yield from _linear_cases(f"{shape.name} {name}", name, m, n, weights, row_tiles)
            del weights


def _linear_cases(
    label: str, name: str, m: int, n: int, weights: list[Tensor], row_tiles: tuple[int, ...]
) -> Iterator[Case]:
    rows, k = weights[0].shape
    x, residual = bf16(m, k), bf16(m, n)
    skinny = functools.partial(kernels.skinny_linear, x)
    if name in ("qkv", "gate_up"):
        skinny = functools.partial(skinny, norm_eps=EPS, swiglu=name == "gate_up")
    elif name == "lm_head":
        skinny = functools.partial(skinny, out_dtype=torch.float32)
    else:
        skinny = functools.partial(skinny, residual=residual)
    case = functools.partial(
        Case,
        shape=f"{label} M{m} {rows}x{k}",
        num_sets=len(weights),
        num_bytes=2.0 * (rows * k + m * k + m * n),
    )
    for tiles in row_tiles if m <= kernels.MAX_SKINNY_TOKENS else ():
        run = functools.partial(_with_weight, skinny, weights, tiles)
        yield case(op=f"skinny_linear/{tiles or 'auto'}", run=run)
    tile = linear_tile(m, rows, k)
    if tile is not None:
        tiled = functools.partial(tile_linear, x, tile=tile, swiglu=name == "gate_up")
        if name in ("o", "down"):
            tiled = functools.partial(tiled, residual=residual)
        yield case(op="tile_linear", run=lambda i: tiled(weight=weights[i]))
    yield case(op="cublas", run=lambda i: functional.linear(x, weights[i]))


def _with_weight(
    skinny: Callable[..., Tensor], weights: list[Tensor], row_tiles: int, i: int
) -> Tensor:
    return skinny(weights[i], row_tiles=row_tiles)


def pointwise_cases() -> Iterator[Case]:
    for shape in SHAPES:
        for tokens in (1, 64, 2048):
            label = f"{shape.name} T{tokens}"
            yield _norm_case(label, shape, tokens)
            yield _silu_case(label, shape, tokens)
            yield _rope_case(label, shape, tokens)


def _norm_case(label: str, shape: Shape, tokens: int) -> Case:
    num_sets = sets_for(2.0 * tokens * shape.hidden)
    x, weight = [bf16(tokens, shape.hidden) for _ in range(num_sets)], bf16(shape.hidden)
    return Case(
        op="rms_norm",
        shape=label,
        num_sets=num_sets,
        num_bytes=4.0 * tokens * shape.hidden,
        run=lambda i: kernels.rms_norm(x[i], weight, EPS),
    )


def _silu_case(label: str, shape: Shape, tokens: int) -> Case:
    gates = [bf16(tokens, 2 * shape.inner) for _ in range(sets_for(4.0 * tokens * shape.inner))]
    return Case(
        op="silu_and_mul",
        shape=label,
        num_sets=len(gates),
        num_bytes=6.0 * tokens * shape.inner,
        run=lambda i: kernels.silu_and_mul(gates[i]),
    )


def _rope_case(label: str, shape: Shape, tokens: int) -> Case:
    width = (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim
    qkv = [bf16(tokens, width) for _ in range(sets_for(4.0 * tokens * width))]
    norm = bf16(shape.head_dim)
    positions = torch.arange(tokens, dtype=torch.int32, device="cuda")
    new_tokens = attention_kernels.NewTokens(
        q_weight=norm,
        k_weight=norm,
        eps=EPS,
        cos_sin=torch.randn(8192, shape.head_dim, device="cuda"),
        positions=positions,
        slot_mapping=positions,
    )
    cache = bf16(tokens // 16 + 2, 2, shape.kv_heads, 16, shape.head_dim)
    return Case(
        op="qk_norm_rope_kv_write",
        shape=label,
        num_sets=len(qkv),
        num_bytes=4.0 * tokens * width + 4.0 * tokens * shape.head_dim,
        run=lambda i: qk_norm_rope_kv_write(qkv[i], new_tokens, cache),
    )


def decode_cases() -> Iterator[Case]:
    for shape in SHAPES:
        for batch, context in ((1, 300), (1, 32768), (1, 131072), (16, 640), (64, 300), (256, 300)):
            for fp8 in (False, True):
                yield _decode_case(shape, batch, context, fp8)


def _decode_case(shape: Shape, batch: int, context: int, fp8: bool) -> Case:
    num_bytes = batch * context * shape.kv_heads * shape.head_dim * (2 if fp8 else 4)
    seq_lens = [context] * batch
    kvs = [paged_kv(shape, [1] * batch, seq_lens, fp8=fp8) for _ in range(sets_for(num_bytes))]
    q = bf16(batch, shape.q_heads, shape.head_dim)
    workspace = attention_kernels.decode_workspace(batch, shape.kv_heads, shape.head_dim, q.device)
    return Case(
        op="decode_attention" + ("/fp8" if fp8 else ""),
        shape=f"{shape.name} S{batch} ctx{context}",
        num_sets=len(kvs),
        num_bytes=float(num_bytes),
        run=lambda i: attention_kernels.decode_attention(q, kvs[i], torch.empty_like(q), workspace),
    )


def prefill_cases() -> Iterator[Case]:
    batches = (
        ([2048], [2048]),
        ([4096], [4096]),
        ([8192], [8192]),
        ([2048], [32768]),
        ([2048] * 32, [2048] * 32),
        ([512] * 4, [512] * 4),
        ([64] * 32, [1024] * 32),
    )
    for shape in SHAPES:
        for query_lens, seq_lens in batches:
            yield from _prefill_cases(shape, query_lens, seq_lens)


def _prefill_cases(shape: Shape, query_lens: list[int], seq_lens: list[int]) -> Iterator[Case]:
    lengths = zip(query_lens, seq_lens, strict=True)
    pairs = sum(q * (n - q) + q * (q + 1) / 2 for q, n in lengths)
    kv, kv_fp8 = (paged_kv(shape, query_lens, seq_lens, fp8=fp8) for fp8 in (False, True))
    q = bf16(sum(query_lens), shape.q_heads, shape.head_dim)
    workspace = attention_kernels.prefill_workspace(q.device)
    case = functools.partial(
        Case,
        shape=f"{shape.name} q{query_lens[0]}x{len(query_lens)} ctx{seq_lens[0]}",
        num_sets=1,
        flops=4.0 * pairs * shape.q_heads * shape.head_dim,
    )
    yield case(
        op="prefill_attention",
        run=lambda i: attention_kernels.prefill_attention(q, kv, torch.empty_like(q), workspace),
    )
    yield case(
        op="prefill_attention/fp8",
        run=lambda i: attention_kernels.prefill_attention(
            q, kv_fp8, torch.empty_like(q), workspace
        ),
    )
    queries, state = PagedQueries("mixed", kv), state_of(kv.block_tables, kv.seq_lens)
    yield case(
        op="prefill_attention/triton",
        run=lambda i: triton_attention.paged_attention(q, kv.kv_cache, queries, state, kv.scale),
    )


def argmax_cases() -> Iterator[Case]:
    for rows in (1, 64, 256):
        yield _argmax_case(rows)


def _argmax_case(rows: int) -> Case:
    num_sets = sets_for(4.0 * rows * VOCAB)
    logits = [torch.randn(rows, VOCAB, device="cuda") for _ in range(num_sets)]
    sampled, last = torch.zeros(2, rows, dtype=torch.int32, device="cuda").unbind()
    slots = torch.arange(rows, dtype=torch.int32, device="cuda")
    workspace = kernels.argmax_workspace(rows, slots.device)
    return Case(
        op="argmax",
        shape=f"S{rows}",
        num_sets=num_sets,
        num_bytes=4.0 * rows * VOCAB,
        run=lambda i: kernels.argmax(logits[i], slots, sampled, last, workspace),
    )


def sample_cases() -> Iterator[Case]:
    for rows in (1, 64, 256):
        for name, top_k, top_p in (("uncut", 0, 1.0), ("k50 p0.9", 50, 0.9), ("p0.9", 0, 0.9)):
            yield _sample_case(rows, name, top_k, top_p)


def _sample_case(rows: int, name: str, top_k: int, top_p: float) -> Case:
    num_sets = sets_for(2.0 * rows * VOCAB)
    logits = [bf16(rows, VOCAB, scale=3.0) for _ in range(num_sets)]
    ones = torch.ones(rows, device="cuda")
    ints = torch.zeros(rows, dtype=torch.int32, device="cuda")
    cuts = (ones, ints + top_k, ones * top_p, ones * 0, ints.long(), ints)
    workspace = kernels.argmax_workspace(rows, ones.device)
    return Case(
        op="random_sample",
        shape=f"S{rows} {name}",
        num_sets=num_sets,
        num_bytes=2.0 * rows * VOCAB,
        run=lambda i: kernels.random_sample(logits[i], *cuts, workspace),
    )


def draw_cases() -> Iterator[Case]:
    for rows in (1, 64, 256):
        for name, top_k, top_p in (("uncut", 0, 1.0), ("top_k50_p0.9", 50, 0.9), ("p0.9", 0, 0.9)):
            for dtype in (torch.float32, torch.bfloat16):
                yield _draw_case(rows, name, top_k, top_p, dtype, with_logprobs=False)
        yield _draw_case(rows, "logprobs", 50, 0.9, torch.bfloat16, with_logprobs=True)


def _draw_case(
    rows: int, name: str, top_k: int, top_p: float, dtype: torch.dtype, *, with_logprobs: bool
) -> Case:
    num_bytes = float(dtype.itemsize * rows * VOCAB)
    logits = [bf16(rows, VOCAB, scale=3.0).to(dtype) for _ in range(sets_for(num_bytes))]
    ones = torch.ones(rows, device="cuda")
    ints = torch.zeros(rows, dtype=torch.int32, device="cuda")
    sampler = SamplerBuffers(
        variant="random",
        arena=ints,
        header=ints,
        row_slots=torch.arange(rows, dtype=torch.int32, device="cuda"),
        target_tokens=ints - 1,
        sampled_tokens=ints.clone(),
        temperature=ones,
        top_p=ones * top_p,
        min_p=ones * 0,
        top_k=ints + top_k,
        seeds=ints.long(),
        sample_positions=ints,
        sampled_logprobs=ones.clone(),
        sampled_ranks=ints.clone(),
        top_ids=torch.zeros(rows, 20, dtype=torch.int32, device="cuda"),
        top_logprobs=torch.zeros(rows, 20, device="cuda"),
    )
    state = state_of(ints, ints.clone())

    def run(i: int) -> None:
        if with_logprobs:
            sample_kernels.write_logprobs(logits[i], sampler)
        else:
            sample_kernels.draw(logits[i], sampler, state)

    return Case(
        op="logprobs" if with_logprobs else "draw",
        shape=f"S{rows} {name} {str(dtype)[6:]}",
        num_sets=len(logits),
        num_bytes=num_bytes,
        run=run,
    )


def decode_step_cases(batches: list[int], context: int) -> Iterator[Case]:
    """All layers of a decode step with their own weights, the head and the argmax: one graph."""
    for shape in SHAPES:
        for batch in batches:
            step = DecodeStep(shape, batch, context)
            yield Case(
                op="decode_step",
                shape=f"{shape.name} S{batch} ctx{context}",
                run=step.run,
                num_sets=1,
                num_bytes=step.num_bytes,
                launches=shape.layers * 6 + 2,
            )
            del step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("filter", nargs="?", default="", help="only ops whose name contains this")
    parser.add_argument("--bandwidth", type=float, default=3.03e12, help="bytes/s of a copy")
    parser.add_argument("--flops", type=float, default=807e12, help="bf16 operations/s")
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--context", type=int, default=256, help="of decode_step")
    parser.add_argument("--row-tiles", type=int, nargs="*", default=[0])
    args = parser.parse_args()
    groups: dict[str, Callable[[], Iterator[Case]]] = {
        "decode_step": lambda: decode_step_cases(args.sequences, args.context),
        "pointwise": pointwise_cases,
        "argmax": argmax_cases,
        "sample": sample_cases,
        "draw": draw_cases,
        "decode_attention": decode_cases,
        "prefill_attention": prefill_cases,
        "linear": lambda: linear_cases(tuple(args.tokens), tuple(args.row_tiles)),
    }
    print(f"{'op':<24}{'shape':<30}{'us':>10}{'rate':>16}{'% of floor':>12}")
    for name, cases in groups.items():
        if args.filter and not any(part in name for part in args.filter.split(",")):
            continue
        for case in cases():
            us = time_us(case)
            rate = f"{case.num_bytes / us / 1e3:.0f} GB/s"
            floor_us = case.num_bytes / args.bandwidth * 1e6
            if case.flops:
                rate = f"{case.flops / us / 1e6:.0f} TFLOP/s"
                floor_us = case.flops / args.flops * 1e6
            line = f"{case.op:<24}{case.shape:<30}{us:>10.2f}{rate:>16}{100 * floor_us / us:>12.1f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()

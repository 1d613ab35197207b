"""What single figures do not show: long contexts, prefill beside decodes, a shared prefix.

    python tools/bench_scenarios.py MODEL [--load-format dummy] [--only long,long_fp8,beside,prefix]

- long:   time per token of one sequence with 32k and 128k tokens of context, beside the floor of
          reading weights and KV once; long_fp8 the same with an E4M3 KV cache;
- beside: gaps between tokens of 16 decoding sequences, alone and while a 32k prompt is prefilled;
- prefix: 256 requests that share 4,096 prompt tokens and differ in 128, cache off and on; one
          warm request beside an uncached prompt as long as its suffix; and one with 128 tokens
          after 32k that are cached, as the next turn of a long conversation.
Prints a table; --json keeps the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dlcore import AsyncLLM, SamplingParams

Figures = dict[str, float]
KIB = 1024


class Load:
    """Requests of random tokens against one engine; times in seconds."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.llm = llm
        self._rng = random.Random(0)
        self._count = 0

    def tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(self.llm.vocab_size) for _ in range(count)]

    async def times(self, prompt: Sequence[int], output: int) -> list[float]:
        """When each token arrived, counted from the request's start."""
        self._count += 1
        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        start = time.perf_counter()
        arrivals: list[float] = []
        async for delta in self.llm.generate(prompt, params, f"r{self._count}"):
            now = time.perf_counter() - start
            arrivals += [now] * len(delta.outputs[0].token_ids)
        return arrivals


def gaps(arrivals: Sequence[float]) -> list[float]:
    return [b - a for a, b in pairwise(arrivals)]


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def long_context(load: Load) -> Figures:
    figures: Figures = {}
    await load.times(load.tokens(KIB), 8)
    for context in (32 * KIB, 128 * KIB):
        if context + 160 > load.llm.max_model_len:
            continue
        arrivals = await load.times(load.tokens(context), 130)
        name = f"{context // KIB}k"
        figures[f"ttft_{name}_ms"] = 1e3 * arrivals[0]
        figures[f"tpot_{name}_ms"] = 1e3 * statistics.median(gaps(arrivals[2:]))
    return figures


async def beside_prefill(load: Load) -> Figures:
    """ITL of 16 sequences before and during the prefill of a 32k prompt."""
    marks: dict[str, float] = {}
    start = time.perf_counter()

    async def decode() -> list[tuple[float, float]]:
        offset = time.perf_counter() - start
        arrivals = [offset + t for t in await load.times(load.tokens(512), 900)]
        return list(zip(arrivals[1:], gaps(arrivals), strict=True))

    async def prefill() -> None:
        await asyncio.sleep(2.0)
        marks["begin"] = time.perf_counter() - start
        await load.times(load.tokens(32 * KIB), 1)
        marks["end"] = time.perf_counter() - start

    await load.times(load.tokens(KIB), 8)
    *decodes, _ = await asyncio.gather(*(decode() for _ in range(16)), prefill())
    rows = [row for rows in decodes if rows for row in rows]
    quiet = [gap for at, gap in rows if 0.5 < at < marks["begin"]]
    during = [gap for at, gap in rows if marks["begin"] < at < marks["end"]]
    return {
        "prefill_32k_ms": 1e3 * (marks["end"] - marks["begin"]),
        "itl_p50_alone_ms": 1e3 * percentile(quiet, 0.5),
        "itl_p99_alone_ms": 1e3 * percentile(quiet, 0.99),
        "itl_p50_beside_ms": 1e3 * percentile(during, 0.5),
        "itl_p99_beside_ms": 1e3 * percentile(during, 0.99),
    }


async def shared_prefix(load: Load, name: str) -> Figures:
    """256 requests, 4,096 tokens in common, 128 of their own, 64 out."""
    system = load.tokens(4 * KIB)
    await load.times(load.tokens(KIB), 8)
    await load.times(system + load.tokens(128), 2)  # the first one warms the cache, if there is one
    start = time.perf_counter()
    prompts = [system + load.tokens(128) for _ in range(256)]
    arrivals = await asyncio.gather(*(load.times(prompt, 64) for prompt in prompts))
    seconds = time.perf_counter() - start
    warm = [await load.times(system + load.tokens(128), 1) for _ in range(5)]
    alone = [await load.times(load.tokens(128), 1) for _ in range(5)]
    return {
        f"{name}_out_tok_s": 256 * 64 / seconds,
        f"{name}_ttft_p50_ms": 1e3 * percentile([a[0] for a in arrivals], 0.5),
        f"{name}_one_request_ttft_ms": 1e3 * statistics.median(a[0] for a in warm),
        f"{name}_suffix_alone_ttft_ms": 1e3 * statistics.median(a[0] for a in alone),
    }


async def next_turn(load: Load) -> Figures:
    """TTFT of 128 tokens after 32k that are cached, and of all of them uncached."""
    await load.times(load.tokens(KIB), 8)
    context = load.tokens(32 * KIB)
    cold = await load.times(context + load.tokens(128), 2)
    warm = [await load.times(context + load.tokens(128), 1) for _ in range(5)]
    return {
        "turn_32k_uncached_ttft_ms": 1e3 * cold[0],
        "turn_32k_cached_ttft_ms": 1e3 * statistics.median(a[0] for a in warm),
    }


Scenario = Callable[[Load], Coroutine[Any, Any, Figures]]


async def run(model: str, options: dict[str, Any], scenario: Scenario) -> Figures:
    llm = AsyncLLM(model, **options)
    try:
        return await scenario(Load(llm))
    finally:
        await llm.close()


def floor_ms(folder: Path, context: int, bandwidth: float, kv_bytes: int) -> float:
    """Weights (bf16) and KV of one sequence (`kv_bytes` a value), read once."""
    c = json.loads((folder / "config.json").read_text())
    hidden, layers, head = c["hidden_size"], c["num_hidden_layers"], c["head_dim"]
    kv_rows = c["num_key_value_heads"] * head
    attention = hidden * (2 * c["num_attention_heads"] * head + 2 * kv_rows)
    weights = layers * (attention + 3 * hidden * c["intermediate_size"]) + hidden * c["vocab_size"]
    num_bytes: int = 2 * weights + kv_bytes * layers * 2 * kv_rows * context
    return 1e3 * num_bytes / bandwidth


def long_contexts(model: Path, options: dict[str, Any], bandwidth: float, suffix: str) -> Figures:
    """Measured and possible times, named with `suffix`."""
    max_len = 132 * KIB
    sized = options | {"max_model_len": max_len, "max_num_seqs": 8}
    measured = asyncio.run(run(str(longer(model, max_len)), sized, long_context))
    figures = {name.removesuffix("_ms") + f"{suffix}_ms": ms for name, ms in measured.items()}
    kv_bytes = 1 if options.get("kv_cache_dtype") == "fp8" else 2
    for context in (32, 128):
        tpot = measured.get(f"tpot_{context}k_ms")
        if tpot is not None:
            floor = floor_ms(model, context * KIB, bandwidth, kv_bytes)
            figures[f"floor_{context}k{suffix}_ms"] = floor
            figures[f"tpot_{context}k{suffix}_percent_of_floor"] = 100 * floor / tpot
    return figures


def longer(folder: Path, max_len: int) -> Path:
    """A copy of the model's config that allows `max_len` positions."""
    config = json.loads((folder / "config.json").read_text())
    copy = folder.parent / f"{folder.name}-{max_len}"
    copy.mkdir(exist_ok=True)
    config["max_position_embeddings"] = max_len
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--load-format", default="dummy")
    parser.add_argument("--only", default="long,long_fp8,beside,prefix")
    parser.add_argument("--bandwidth", type=float, default=3.03e12, help="bytes a second")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    options = {"load_format": args.load_format, "enable_prefix_caching": False}
    if args.kv_cache_dtype != "auto":
        options["kv_cache_dtype"] = args.kv_cache_dtype
    figures: Figures = {}
    wanted = args.only.split(",")
    if "long" in wanted:
        figures |= long_contexts(args.model, options, args.bandwidth, "")
    if "long_fp8" in wanted:
        fp8 = options | {"kv_cache_dtype": "fp8"}
        figures |= long_contexts(args.model, fp8, args.bandwidth, "_fp8")
    if "beside" in wanted:
        sized = options | {"max_model_len": 40000, "max_num_seqs": 64}
        figures |= asyncio.run(run(str(args.model), sized, beside_prefill))
    if "prefix" in wanted:
        for name, caching in (("cache_off", False), ("cache_on", True)):
            sized = options | {"max_model_len": 8192, "enable_prefix_caching": caching}

            def scenario(load: Load, name: str = name) -> Coroutine[Any, Any, Figures]:
                return shared_prefix(load, name)

            figures |= asyncio.run(run(str(args.model), sized, scenario))
        sized = options | {"max_model_len": 40000, "enable_prefix_caching": True}
        figures |= asyncio.run(run(str(args.model), sized, next_turn))
    for name, value in figures.items():
        print(f"{name:<32}{value:>12.2f}")
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

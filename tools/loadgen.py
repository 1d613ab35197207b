"""Closed-loop load on an OpenAI-compatible /v1/completions: streaming, token-id prompts.

    python tools/loadgen.py --base http://127.0.0.1:8000 --model M --concurrency 64 \
        --requests 512 --input 512 --output 256 --procs 4

prints one JSON row: output tokens/s, TTFT, TPOT, ITL p99 (milliseconds). Tokens are counted by the
server's `usage`; a stream that ends early or answers an error is counted as failed and named. It
knows nothing of dlcore, so the same file drives every engine and rows compare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass
class Tally:
    """What one client process saw; times in seconds."""

    ok: int = 0
    tokens: int = 0
    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def one_request(
    session: aiohttp.ClientSession, args: argparse.Namespace, rng: random.Random, tally: Tally
) -> None:
    body = {
        "model": args.model,
        "prompt": [rng.randrange(1000, args.vocab) for _ in range(args.input)],
        "max_tokens": args.output,
        "temperature": 0.0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    start = time.perf_counter()
    first = last = 0.0
    gaps: list[float] = []
    count = 0
    try:
        async with session.post(args.base + "/v1/completions", json=body) as response:
            if response.status != 200:
                tally.errors.append(f"{response.status} {(await response.text())[:200]}")
                return
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                now = time.perf_counter()
                if b'"usage"' in line:
                    event = json.loads(line[6:])
                    if event.get("usage") and not event.get("choices"):
                        count = event["usage"]["completion_tokens"]
                        continue
                if first:
                    gaps.append(now - last)
                else:
                    first = now
                last = now
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        tally.errors.append(repr(error)[:200])
        return
    if count != args.output:
        tally.errors.append(f"short: {count} of {args.output} tokens")
        return
    tally.ok += 1
    tally.tokens += count
    tally.ttft.append(first - start)
    tally.tpot.append((last - first) / max(1, count - 1))
    tally.gaps += gaps


async def run_process(args: argparse.Namespace, index: int, requests: int, clients: int) -> Tally:
    tally = Tally()
    rng = random.Random(args.seed * 1000 + index)
    left = requests

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await one_request(session, args, rng, tally)

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
    ) as session:
        await asyncio.gather(*[client(session) for _ in range(clients)])
    return tally


def child(
    args: argparse.Namespace, index: int, requests: int, clients: int, queue: mp.Queue[Tally]
) -> None:
    queue.put(asyncio.run(run_process(args, index, requests, clients)))


def percentile_ms(values: list[float], fraction: float) -> float | None:
    if not values:
        return None
    values = sorted(values)
    return round(values[min(len(values) - 1, int(len(values) * fraction))] * 1e3, 2)


def row(args: argparse.Namespace, tallies: list[Tally], seconds: float) -> dict[str, Any]:
    ttft = [v for t in tallies for v in t.ttft]
    tpot = [v for t in tallies for v in t.tpot]
    gaps = [v for t in tallies for v in t.gaps]
    errors = [e for t in tallies for e in t.errors]
    return {
        "concurrency": args.concurrency,
        "input": args.input,
        "output": args.output,
        "ok": sum(t.ok for t in tallies),
        "failed": len(errors),
        "out_tok_s": round(sum(t.tokens for t in tallies) / seconds),
        "ttft_p50": percentile_ms(ttft, 0.5),
        "ttft_p99": percentile_ms(ttft, 0.99),
        "tpot_p50": percentile_ms(tpot, 0.5),
        "tpot_p99": percentile_ms(tpot, 0.99),
        "itl_p99": percentile_ms(gaps, 0.99),
        "first_errors": [e[:120] for e in errors[:2]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True)
    defaults = {
        "concurrency": 64,
        "requests": 512,
        "input": 512,
        "output": 256,
        "procs": 4,
        "seed": 0,
        "vocab": 150000,
    }
    for name, value in defaults.items():
        parser.add_argument("--" + name, type=int, default=value)
    args = parser.parse_args()
    procs = min(args.procs, args.concurrency)
    queue: mp.Queue[Tally] = mp.Queue()
    start = time.perf_counter()
    children = [
        mp.Process(
            target=child,
            args=(args, k, args.requests // procs, args.concurrency // procs, queue),
        )
        for k in range(procs)
    ]
    for process in children:
        process.start()
    tallies = [queue.get() for _ in children]
    for process in children:
        process.join()
    print("ROW", json.dumps(row(args, tallies, time.perf_counter() - start)), flush=True)


if __name__ == "__main__":
    main()

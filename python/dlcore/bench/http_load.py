"""Closed-loop load on an OpenAI-compatible server: streaming, from several processes.

Each client sends its next request when the last answer has ended. The clients run in child
processes (`python -m dlcore.bench.http_load`, a spec as JSON in, figures as JSON out), so that
measuring does not slow what is measured. Answer tokens are counted by the server's `usage`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

import aiohttp

REQUEST_TIMEOUT_S = 600.0
MAX_ERRORS_SHOWN = 3
GO = "go"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    url: str
    model: str
    concurrency: int
    requests: int
    input_len: int
    output_len: int
    vocab_size: int
    processes: int
    api_key: str | None = None
    seed: int = 0


@dataclass(slots=True)
class Tally:
    """What one process saw; times in seconds."""

    ok: int = 0
    tokens: int = 0
    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One row: latencies in milliseconds."""

    concurrency: int
    ok: int
    failed: int
    tokens: int
    chunks: int  # pieces the tokens came in
    seconds: float
    output_tokens_per_s: float
    ttft_p50: float | None
    ttft_p99: float | None
    tpot_p50: float | None
    tpot_p99: float | None
    itl_p50: float | None
    itl_p99: float | None
    errors: list[str]


def run_load(spec: LoadSpec) -> LoadResult:
    """Blocks until every request was answered or failed."""
    count = min(spec.processes, spec.concurrency)
    children = [_start_child(part) for part in _shares(spec, count)]
    for child in children:
        _read_line(child)  # it is ready
    start = time.perf_counter()
    for child in children:
        _send_line(child, GO)
    tallies = [_finish_child(child) for child in children]
    return _summarise(spec, tallies, time.perf_counter() - start)


def _shares(spec: LoadSpec, count: int) -> Iterable[LoadSpec]:
    for i in range(count):
        yield replace(
            spec,
            concurrency=spec.concurrency // count + (i < spec.concurrency % count),
            requests=spec.requests // count + (i < spec.requests % count),
            seed=spec.seed * 1000 + i,
        )


def _start_child(spec: LoadSpec) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "dlcore.bench.http_load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    _send_line(child, json.dumps(asdict(spec)))
    return child


def _send_line(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(line + "\n")
        child.stdin.flush()
    except BrokenPipeError:
        return  # it died: _finish_child says so


def _read_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def _finish_child(child: subprocess.Popen[str]) -> Tally:
    text = _read_line(child)
    child.communicate()
    if child.returncode != 0:
        return Tally(errors=[f"a client process ended with code {child.returncode}"])
    return Tally(**json.loads(text))


def _summarise(spec: LoadSpec, tallies: list[Tally], seconds: float) -> LoadResult:
    ttft = sorted(v for t in tallies for v in t.ttft)
    tpot = sorted(v for t in tallies for v in t.tpot)
    itl = sorted(v for t in tallies for v in t.itl)
    errors = [e for t in tallies for e in t.errors]
    return LoadResult(
        concurrency=spec.concurrency,
        ok=sum(t.ok for t in tallies),
        failed=len(errors),
        tokens=sum(t.tokens for t in tallies),
        chunks=len(itl) + len(ttft),
        seconds=round(seconds, 3),
        output_tokens_per_s=round(sum(t.tokens for t in tallies) / seconds, 1),
        ttft_p50=_percentile_ms(ttft, 0.50),
        ttft_p99=_percentile_ms(ttft, 0.99),
        tpot_p50=_percentile_ms(tpot, 0.50),
        tpot_p99=_percentile_ms(tpot, 0.99),
        itl_p50=_percentile_ms(itl, 0.50),
        itl_p99=_percentile_ms(itl, 0.99),
        errors=errors[:MAX_ERRORS_SHOWN],
    )


def _percentile_ms(ordered: list[float], fraction: float) -> float | None:
    if not ordered:
        return None
    return round(1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * fraction))], 3)


async def _run_clients(spec: LoadSpec) -> Tally:
    tally = Tally()
    rng = random.Random(spec.seed)
    left = spec.requests

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await _one_request(session, spec, rng, tally)

    headers = {"Authorization": f"Bearer {spec.api_key}"} if spec.api_key else {}
    async with aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
    ) as session:
        await asyncio.gather(*[client(session) for _ in range(spec.concurrency)])
    return tally


async def _one_request(
    session: aiohttp.ClientSession, spec: LoadSpec, rng: random.Random, tally: Tally
) -> None:
    body = {
        "model": spec.model,
        "prompt": [rng.randrange(spec.vocab_size) for _ in range(spec.input_len)],
        "max_tokens": spec.output_len,
        "temperature": 0.0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    start = time.perf_counter()
    try:
        async with session.post(f"{spec.url}/v1/completions", json=body) as response:
            if response.status != 200:
                tally.errors.append(f"{response.status}: {(await response.text())[:200]}")
                return
            arrivals, count = await _read_stream(response)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        tally.errors.append(repr(error)[:200])
        return
    if count != spec.output_len or not arrivals:
        tally.errors.append(f"got {count} of {spec.output_len} tokens")
        return
    tally.ok += 1
    tally.tokens += count
    tally.ttft.append(arrivals[0] - start)
    tally.tpot.append((arrivals[-1] - arrivals[0]) / max(1, count - 1))
    tally.itl += [b - a for a, b in itertools.pairwise(arrivals)]


async def _read_stream(response: aiohttp.ClientResponse) -> tuple[list[float], int]:
    """When each piece of the answer came, and the server's count of tokens."""
    arrivals: list[float] = []
    count = 0
    rest = b""
    # Whole reads, not lines: a client that is slow to read slows the server.
    async for data in response.content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            if b'"usage"' in line:
                event = json.loads(line[6:])
                if event.get("usage") and not event.get("choices"):
                    count = event["usage"]["completion_tokens"]
                    continue
            arrivals.append(now)
    return arrivals, count


def _child_main() -> None:
    spec = LoadSpec(**json.loads(sys.stdin.readline()))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if sys.stdin.readline().strip() == GO:
        sys.stdout.write(json.dumps(asdict(asyncio.run(_run_clients(spec)))) + "\n")


if __name__ == "__main__":
    _child_main()

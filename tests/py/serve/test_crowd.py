"""Crowds of clients that cost a server nothing but their sockets, over the real engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from serve.test_rpc_end_to_end import Served, serving

from dlcore.bundled_model import has_bundled_model

CROWD = 1000
BODY = {"prompt": [5, 6, 7], "max_tokens": 1500, "ignore_eos": True, "stream": True}
MAX_MIB_PER_CROWD = 150.0
HEADER_TIMEOUT_S = 3.0

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not has_bundled_model(), reason="the bundled model is not installed"),
]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4 * CROWD:
        pytest.skip("too few open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * CROWD), hard))
    flags = ["--max-num-seqs", "4", "--num-kv-blocks", "1024", "--no-access-log"]
    with serving(*flags, "--header-timeout", str(HEADER_TIMEOUT_S)) as server:
        yield server
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def mib(server: Served) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1024


def open_sockets(server: Served) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


async def metric(client: httpx.AsyncClient, name: str) -> float:
    page = (await client.get("/metrics")).text
    return sum(float(v) for v in re.findall(rf"^dlcore:{name}(?:{{.*}})? (\S+)$", page, re.M))


@contextlib.asynccontextmanager
async def crowd(server: Served, first_words: bytes) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """CROWD connections that said `first_words` and never read an answer."""
    host, _, port = server.base.removeprefix("http://").rpartition(":")
    writers = []
    try:
        for _ in range(CROWD):
            _, writer = await asyncio.open_connection(host, int(port), limit=1024)
            writer.write(first_words)
            writers.append(writer)
        yield writers
    finally:
        for writer in writers:
            writer.transport.abort()


async def is_served(client: httpx.AsyncClient) -> None:
    ask = {"prompt": "What is 3 + 4?", "max_tokens": 4, "ignore_eos": True}
    answer = await client.post("/v1/completions", json=ask)
    assert answer.json()["usage"]["completion_tokens"] == 4


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.1)


def test_a_thousand_idle_streams_cost_little_and_nobody_else(served: Served) -> None:
    asyncio.run(_idle_streams(served))


async def _idle_streams(server: Served) -> None:
    body = json.dumps(BODY).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with httpx.AsyncClient(base_url=server.base, timeout=30) as client:

        async def all_wait() -> bool:
            return await metric(client, "num_requests_waiting") >= CROWD - 10

        async def none_is_left() -> bool:
            names = ("num_requests_waiting", "num_requests_running")
            return sum([await metric(client, name) for name in names]) == 0

        sizes = [mib(server)]
        for _ in range(2):
            async with crowd(server, head + body):
                await until(all_wait, 60)
                sizes.append(mib(server))
                began = time.monotonic()
                assert (await client.get("/health")).status_code == 200
                assert (await client.post("/tokenize", json={"prompt": "a"})).status_code == 200
                assert time.monotonic() - began < 5
            await until(none_is_left, 60)
            await is_served(client)
            total = await metric(client, "kv_cache_total_blocks")
            free = await metric(client, "kv_cache_free_blocks")
            assert free + await metric(client, "kv_cache_cached_blocks") == total
    assert sizes[1] - sizes[0] < MAX_MIB_PER_CROWD
    assert sizes[2] - sizes[1] < MAX_MIB_PER_CROWD / 4  # the second crowd uses what the first left


def test_a_thousand_slow_clients_are_sent_away_and_others_are_served(served: Served) -> None:
    asyncio.run(_slow_clients(served))


async def _slow_clients(server: Served) -> None:
    before, sockets = mib(server), open_sockets(server)
    slow = b"POST /v1/completions HTTP/1.1\r\nx-slow: "
    async with (
        httpx.AsyncClient(base_url=server.base, timeout=30) as client,
        crowd(server, slow) as writers,
    ):
        dripping = asyncio.create_task(_drip(writers))
        for _ in range(5):
            await is_served(client)

        async def all_are_gone() -> bool:
            return open_sockets(server) <= sockets + 16

        await until(all_are_gone, HEADER_TIMEOUT_S * 10)
        dripping.cancel()
        assert (await client.get("/health")).status_code == 200
    assert mib(server) - before < MAX_MIB_PER_CROWD


async def _drip(writers: list[asyncio.StreamWriter]) -> None:
    """A byte of a header from each, again and again."""
    while True:
        for writer in writers:
            if not writer.transport.is_closing():
                writer.write(b"a")
        await asyncio.sleep(0.5)

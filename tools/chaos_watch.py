"""What a storm does to the processes under it: their memory, and the KV blocks of the nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from dlcore.control.child import Child
from dlcore.control.local_system import LocalSystem

ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
METRIC = "dlcore:"
# Of the bundled model on a CPU: 16 tokens, 8 layers, keys and values, 2 heads of 64 float32.
KV_BLOCK_KIB = 128
# A process is compared with itself only once it has lived long enough to have filled its caches.
LONG_LIFE_S = 60.0


def resident_kib(pid: int) -> int:
    """0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


@dataclass(slots=True)
class Life:
    """One process from its start to its end."""

    name: str
    began: float = field(default_factory=time.monotonic)
    kib: list[int] = field(default_factory=list)  # but for KV blocks
    blocks_written: int = 0  # ever: their memory is the system's until the first time
    pulls: int = 0
    failed_pulls: int = 0

    @property
    def growth_kib(self) -> int:
        """Of the second half over the first: caches fill in the beginning."""
        half = len(self.kib) // 2
        return max(self.kib[half:], default=0) - max(self.kib[:half], default=0)


class Lives:
    """Every process of the system that was seen, by pid."""

    def __init__(self) -> None:
        self._lives: dict[int, Life] = {}
        self._seconds: dict[int, float] = {}

    def of(self, child: Child) -> Life:
        return self._lives.setdefault(child.pid, Life(child.name))

    def sample(self, child: Child) -> None:
        life, size = self.of(child), resident_kib(child.pid)
        if size:
            life.kib.append(size - life.blocks_written * KV_BLOCK_KIB)
            self._seconds[child.pid] = time.monotonic() - life.began

    def long_lives(self, prefix: str, seconds: float = LONG_LIFE_S) -> list[Life]:
        lives = self._lives.items()
        return [
            life
            for pid, life in lives
            if life.name.startswith(prefix) and self._seconds.get(pid, 0.0) >= seconds
        ]

    def longest_s(self, prefix: str) -> float:
        lives = self._lives.items()
        found = (self._seconds.get(pid, 0.0) for pid, v in lives if v.name.startswith(prefix))
        return max(found, default=0.0)

    def __iter__(self) -> Iterator[Life]:
        return iter(self._lives.values())


class NodeMetrics:
    """Reads the nodes' /metrics."""

    def __init__(self, session: aiohttp.ClientSession, system: LocalSystem) -> None:
        self._session = session
        self._system = system
        key = system.node_key
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    async def read(self, node: Child, timeout_s: float = 1.0) -> dict[str, float]:
        """Gauges and counters by name, without dlcore's prefix; {} when the node says nothing."""
        url = self._system.url_of(node) + "/metrics"
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.get(url, headers=self._headers, timeout=timeout) as reply:
                page = await reply.text() if reply.status == 200 else ""
        except ERRORS:
            return {}
        lines = [line for line in page.splitlines() if line.startswith(METRIC)]
        pairs = (line.rpartition(" ") for line in lines)
        return {name.partition("{")[0][len(METRIC) :]: float(value) for name, _, value in pairs}

    async def note(self, lives: Lives) -> None:
        """Counts start anew with each process, so they are noted while it lives."""
        for node in self._system.nodes:
            if not node.alive:
                continue
            life, found = lives.of(node), await self.read(node)
            if not found:
                continue
            life.pulls = max(life.pulls, int(found.get("kv_pulls_total", 0)))
            life.failed_pulls = max(life.failed_pulls, int(found.get("kv_pull_failures_total", 0)))
            # The pool hands out the block that was freed last: others stay as they were.
            in_use = int(found["kv_cache_total_blocks"] - found["kv_cache_free_blocks"])
            life.blocks_written = max(life.blocks_written, in_use)
            lives.sample(node)

    async def unreturned(self) -> list[str]:
        """The nodes that hold blocks though nobody asks them anything, and what they hold."""
        held = []
        for node in self._system.nodes:
            found = await self.read(node, 5.0)
            if not found:
                held.append(f"{node.name} does not answer")
                continue
            total = found["kv_cache_total_blocks"]
            back = found["kv_cache_free_blocks"] + found["kv_cache_cached_blocks"]
            leases, pulls = found["kv_leases"], found["kv_pulls_running"]
            if back != total or leases or pulls:
                held.append(f"{node.name}: {back:g}/{total:g} back, {leases:g} leases, {pulls:g}")
        return held

    async def seconds_until_returned(self, limit_s: float) -> tuple[float, list[str]]:
        """How long it took, and what was not returned within the limit."""
        began = time.monotonic()
        while True:
            held = await self.unreturned()
            waited = time.monotonic() - began
            if not held or waited > limit_s:
                return round(waited, 2), held
            await asyncio.sleep(0.1)

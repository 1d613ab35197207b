"""Clients of a router whose nodes are killed and frozen: no answer may fail or differ.

    python tools/chaos.py --seconds 300 --clients 64 --replicas 3

Every answer is greedy, so the first one to each prompt, taken before anything is broken, is the
oracle of all that follow. Prints one line of figures a round and a summary as JSON; exit status
1 when an answer failed or differed, or when the router's memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp

from dlcore.control.child import Child, free_port
from dlcore.control.local_system import LocalPlan, LocalSystem

ANSWER_TIMEOUT_S = 120.0
MAX_GROWTH_KIB = 32 * 1024
WATCH_S = 0.5


@dataclass(slots=True)
class Figures:
    seconds: float = 0.0
    answers: int = 0
    tokens: int = 0
    failed: int = 0
    corrupted: int = 0
    killed: int = 0
    frozen: int = 0
    redis_restarts: int = 0
    failovers: int = 0
    longest_pause_s: float = 0.0
    router_kib: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def growth_kib(self) -> int:
        """Of the second half over the first: caches fill in the beginning."""
        half = len(self.router_kib) // 2
        return max(self.router_kib[half:], default=0) - max(self.router_kib[:half], default=0)

    @property
    def good(self) -> bool:
        steady = self.growth_kib <= MAX_GROWTH_KIB
        return self.answers > 0 and not self.failed and not self.corrupted and steady

    def problem(self, text: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(text)


class Client:
    """Streams answers, and compares each with the oracle's."""

    def __init__(self, session: aiohttp.ClientSession, url: str, max_tokens: int) -> None:
        self._session = session
        self._url = url + "/v1/chat/completions"
        self.max_tokens = max_tokens
        self.longest_pause_s = 0.0

    async def ask(self, prompt: str) -> str:
        """The whole answer's text. Raises ValueError for one that is broken."""
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces: list[str] = []
        usage = 0
        ended = done = False
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        async with self._session.post(self._url, json=body, timeout=timeout) as reply:
            if reply.status != 200:
                raise ValueError(f"status {reply.status}: {(await reply.text())[:200]}")
            last = time.monotonic()
            async for line in reply.content:
                now = time.monotonic()
                self.longest_pause_s = max(self.longest_pause_s, now - last)
                last = now
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    done = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(f"error event: {event['error']}")
                for choice in event["choices"]:
                    pieces.append(choice["delta"].get("content") or "")
                    ended = ended or bool(choice.get("finish_reason"))
                usage = (event.get("usage") or {}).get("completion_tokens", usage)
        if not (ended and done and usage == self.max_tokens):
            raise ValueError(f"cut: ended={ended} done={done} completion_tokens={usage}")
        return "".join(pieces)


class Chaos:
    """Breaks one node at a time, every `period_s`, and has it come back."""

    def __init__(self, system: LocalSystem, figures: Figures, period_s: float, seed: int) -> None:
        self._system = system
        self._figures = figures
        self._period_s = period_s
        self._random = random.Random(seed)

    async def run(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(self._period_s)
            node = self._random.choice(self._system.nodes)
            turn += 1
            if self._system.services and turn % 4 == 0:
                self._system.services[0].kill()  # Redis, which forgets everything
                self._figures.redis_restarts += 1
            elif turn % 3 == 0:
                await self._freeze(node)
            else:
                node.kill()
                self._figures.killed += 1

    async def _freeze(self, node: Child) -> None:
        if not node.alive:
            return
        node.signal(signal.SIGSTOP)
        self._figures.frozen += 1
        await asyncio.sleep(self._period_s * 0.6)
        if node.alive:
            node.signal(signal.SIGCONT)


def prompts(count: int) -> list[str]:
    return [f"What is {a} + {a * 7 % 90 + 3}? Say more about it." for a in range(2, count + 2)]


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


async def watch(system: LocalSystem, figures: Figures) -> None:
    """Restarts what died and samples the router's memory."""
    while True:
        await asyncio.sleep(WATCH_S)
        if not system.router.alive:
            figures.failed += 1
            figures.problem(f"the router died: {system.router.last_words()[-300:]}")
            return
        system.restart_dead()
        figures.router_kib.append(resident_kib(system.router.pid))


async def keep_asking(
    client: Client, oracle: dict[str, str], figures: Figures, order: random.Random, deadline: float
) -> None:
    while time.monotonic() < deadline:
        prompt = order.choice(list(oracle))
        try:
            text = await client.ask(prompt)
        except (ValueError, aiohttp.ClientError, asyncio.TimeoutError) as error:
            figures.failed += 1
            figures.problem(f"{prompt!r}: {type(error).__name__}: {error}")
            continue
        figures.answers += 1
        figures.tokens += client.max_tokens
        if text != oracle[prompt]:
            figures.corrupted += 1
            figures.problem(f"{prompt!r}: {text!r} is not {oracle[prompt]!r}")


async def failovers(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url + "/metrics") as reply:
        lines = (await reply.text()).splitlines()
    name = "dlcore_router:stream_failovers_total"
    return int(sum(float(line.split()[1]) for line in lines if line.startswith(name)))


async def chaos(system: LocalSystem, args: argparse.Namespace) -> Figures:
    figures = Figures()
    url = system.router_url
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        clients = [Client(session, url, args.max_tokens) for _ in range(args.clients)]
        questions = prompts(args.prompts)
        answers = await asyncio.gather(*(clients[0].ask(q) for q in questions))
        oracle = dict(zip(questions, answers, strict=True))
        for client in clients:
            client.longest_pause_s = 0.0
        began = time.monotonic()
        breaking = [
            asyncio.create_task(Chaos(system, figures, args.period, args.seed).run()),
            asyncio.create_task(watch(system, figures)),
        ]
        await asyncio.gather(
            *(
                keep_asking(c, oracle, figures, random.Random(i), began + args.seconds)
                for i, c in enumerate(clients)
            )
        )
        for task in breaking:
            task.cancel()
        for node in system.nodes:
            node.signal(signal.SIGCONT)
        figures.seconds = round(time.monotonic() - began, 1)
        figures.longest_pause_s = round(max(c.longest_pause_s for c in clients), 2)
        figures.failovers = await failovers(session, url)
    return figures


def plan(args: argparse.Namespace, folder: Path) -> LocalPlan:
    node_args = ["--num-threads", "1", "--num-kv-blocks", "2048", "--max-num-seqs", "64"]
    node_args += ["--no-access-log"]
    router_args = ["--policy", args.policy, "--check-interval-s", "0.5"]
    router_args += ["--check-timeout-s", "1.5"]
    return LocalPlan(
        roles=(("hybrid", args.replicas),),
        log_dir=folder,
        router_port=free_port(),
        node_args=tuple(node_args),
        router_args=tuple(router_args),
        ctrl=args.ctrl,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--period", type=float, default=10.0, help="seconds between faults")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--policy", default="prefix_aware")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ctrl", action="store_true", help="with Redis and dlslime-ctrl")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="dlcore-chaos-") as folder:
        system = LocalSystem(plan(args, Path(folder)))
        try:
            system.start(120.0)
            figures = asyncio.run(chaos(system, args))
        finally:
            system.stop()
    report = asdict(figures)
    sizes = report.pop("router_kib")
    report["router_mib"] = [round(kib / 1024) for kib in (*sizes[:1], max(sizes), *sizes[-1:])]
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0 if figures.good else 1


if __name__ == "__main__":
    sys.exit(main())

"""Clients of a router whose nodes are killed and frozen: no answer may fail or differ.

    python tools/chaos.py --seconds 300 --clients 64 --replicas 3
    python tools/chaos.py --seconds 300 --clients 64 --prefill 2 --decode 2 --ctrl

Every answer is greedy, so the first one to each prompt, taken before anything is broken, is the
oracle of all that follow. A random node is killed every --period seconds; now and then another one
is frozen meanwhile, and with --ctrl Redis is killed. Prints the figures as JSON; exit status 1 when
an answer failed or differed, when the memory of the router or of a node grew, or when a node's KV
blocks were not all back a lease's time after the last answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
from chaos_watch import Lives, NodeMetrics

from dlcore.control.child import Child, free_port
from dlcore.control.local_system import LocalPlan, LocalSystem

ANSWER_TIMEOUT_S = 120.0
START_TIMEOUT_S = 120.0
MAX_GROWTH_MIB = 48.0  # a node is full after some two minutes, which few live
ROLES = ("hybrid", "prefill", "decode")
WATCH_S = 0.5
LEASE_TTL_S = 8.0
PULL_TIMEOUT_S = 5.0
SLACK_S = 3.0  # a machine under load is late
SALTED = 0.75  # share of the requests whose prompt no node has in its prefix cache
CONTEXT = (
    "You are a patient teacher. Read the question twice, think about each number in it, name the "
    "operation that connects them, then answer with the result first and the way to it after. Use "
    "short words and no lists. If a number is missing, say which one. Do not repeat the question. "
)


@dataclass(slots=True)
class Figures:
    seconds: float = 0.0
    answers: int = 0
    tokens: int = 0
    failed: int = 0
    corrupted: int = 0
    killed: dict[str, int] = field(default_factory=dict)  # by role
    frozen: dict[str, int] = field(default_factory=dict)
    redis_restarts: int = 0
    failovers: int = 0
    longest_pause_s: float = 0.0
    kv_pulls: int = 0
    kv_pull_failures: int = 0
    blocks_back_s: float = 0.0
    blocks_not_back: list[str] = field(default_factory=list)
    router_mib: list[int] = field(default_factory=list)  # first, largest, last
    router_growth_mib: float = 0.0
    node_growth_mib: list[float] = field(default_factory=list)  # of those that lived for a minute
    longest_node_life_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        grown = max(self.router_growth_mib, *self.node_growth_mib, 0.0)
        broken = self.failed or self.corrupted or self.blocks_not_back
        return self.answers > 0 and not broken and grown <= MAX_GROWTH_MIB

    def problem(self, text: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(text)

    def note_lives(self, lives: Lives) -> None:
        (router,) = lives.long_lives("router", 0.0)
        sizes = (router.kib[0], max(router.kib), router.kib[-1])
        self.router_mib = [round(kib / 1024) for kib in sizes]
        self.router_growth_mib = round(router.growth_kib / 1024, 1)
        nodes = [life for role in ROLES for life in lives.long_lives(role)]
        self.node_growth_mib = [round(life.growth_kib / 1024, 1) for life in nodes]
        self.longest_node_life_s = round(max(lives.longest_s(role) for role in ROLES), 1)
        self.kv_pulls = sum(life.pulls for life in lives)
        self.kv_pull_failures = sum(life.failed_pulls for life in lives)


class Client:
    """Streams answers, and compares each with the oracle's."""

    def __init__(self, session: aiohttp.ClientSession, url: str, max_tokens: int) -> None:
        self._session = session
        self._url = url + "/v1/chat/completions"
        self.max_tokens = max_tokens
        self.longest_pause_s = 0.0

    async def ask(self, prompt: str, cache_salt: str | None = None) -> str:
        """The whole answer's text. Raises ValueError for one that is broken."""
        body = {
            "messages": [{"role": "user", "content": prompt}],
            **({} if cache_salt is None else {"cache_salt": cache_salt}),
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
    """Kills a node every `period_s`; freezes others and kills Redis in between."""

    def __init__(self, system: LocalSystem, figures: Figures, period_s: float, seed: int) -> None:
        self._system = system
        self._figures = figures
        self._period_s = period_s
        self._random = random.Random(seed)

    async def run(self) -> None:
        turn = 0
        began = time.monotonic()
        while True:
            turn += 1
            await asyncio.sleep(began + turn * self._period_s - time.monotonic())
            node = self._random.choice(self._system.nodes)
            node.kill()
            count(self._figures.killed, node)
            if turn % 3 == 0:
                await self._freeze()
            if self._system.services and turn % 4 == 0:
                self._system.services[0].kill()  # Redis, which forgets everything
                self._figures.redis_restarts += 1

    async def _freeze(self) -> None:
        """One of those that live, for a while that ends before the next kill."""
        await asyncio.sleep(self._period_s * 0.2)
        living = [node for node in self._system.nodes if node.alive]
        if not living:
            return
        node = self._random.choice(living)
        node.signal(signal.SIGSTOP)
        count(self._figures.frozen, node)
        await asyncio.sleep(self._period_s * 0.6)
        if node.alive:
            node.signal(signal.SIGCONT)


def count(by_role: dict[str, int], node: Child) -> None:
    role = node.name.rpartition("-")[0]
    by_role[role] = by_role.get(role, 0) + 1


def prompts(number: int, context: str) -> list[str]:
    return [
        f"{context}What is {a} + {a * 7 % 90 + 3}? Say more about it." for a in range(2, number + 2)
    ]


async def watch(system: LocalSystem, figures: Figures, lives: Lives, metrics: NodeMetrics) -> None:
    """Restarts what died, samples memory and counts."""
    turn = 0
    while True:
        await asyncio.sleep(WATCH_S)
        if not system.router.alive:
            figures.failed += 1
            figures.problem(f"the router died: {system.router.last_words()[-300:]}")
            return
        system.restart_dead()
        lives.sample(system.router)
        turn += 1
        if turn % 4 == 0:
            await metrics.note(lives)


async def keep_asking(
    client: Client, oracle: dict[str, str], figures: Figures, order: random.Random, deadline: float
) -> None:
    while time.monotonic() < deadline:
        prompt = order.choice(list(oracle))
        salt = secrets.token_hex(8) if order.random() < SALTED else None
        try:
            text = await client.ask(prompt, salt)
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
    figures, lives = Figures(), Lives()
    url = system.router_url
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        metrics = NodeMetrics(session, system)
        clients = [Client(session, url, args.max_tokens) for _ in range(args.clients)]
        questions = prompts(args.prompts, CONTEXT if args.moves_kv else "")
        answers = await asyncio.gather(*(clients[0].ask(q) for q in questions))
        oracle = dict(zip(questions, answers, strict=True))
        for client in clients:
            client.longest_pause_s = 0.0
        began = time.monotonic()
        breaking = [
            asyncio.create_task(Chaos(system, figures, args.period, args.seed).run()),
            asyncio.create_task(watch(system, figures, lives, metrics)),
        ]
        await asyncio.gather(
            *(
                keep_asking(c, oracle, figures, random.Random(i), began + args.seconds)
                for i, c in enumerate(clients)
            )
        )
        figures.seconds = round(time.monotonic() - began, 1)
        await calm(breaking, system)
        limit_s = LEASE_TTL_S + SLACK_S
        figures.blocks_back_s, figures.blocks_not_back = await metrics.seconds_until_returned(
            limit_s
        )
        await metrics.note(lives)
        figures.note_lives(lives)
        figures.longest_pause_s = round(max(c.longest_pause_s for c in clients), 2)
        figures.failovers = await failovers(session, url)
    return figures


async def calm(breaking: list[asyncio.Task[None]], system: LocalSystem) -> None:
    """Ends the storm; every node lives and answers again."""
    for task in breaking:
        task.cancel()
    await asyncio.gather(*breaking, return_exceptions=True)
    for node in system.nodes:
        node.signal(signal.SIGCONT)
    system.restart_dead()
    await asyncio.to_thread(system.wait_ready, START_TIMEOUT_S)


def plan(args: argparse.Namespace, folder: Path) -> LocalPlan:
    node_args = ["--num-threads", "1", "--num-kv-blocks", "1024", "--max-num-seqs", "64"]
    node_args += ["--no-access-log", "--device", "cpu"]
    if args.moves_kv:
        node_args += ["--kv-lease-ttl", str(LEASE_TTL_S)]
        node_args += ["--kv-pull-timeout", str(PULL_TIMEOUT_S), "--transport", args.transport]
    router_args = ["--policy", args.policy, "--check-interval-s", "0.5"]
    router_args += ["--check-timeout-s", "1.5"]
    counts = (args.replicas, args.prefill, args.decode)
    return LocalPlan(
        roles=tuple(zip(ROLES, counts, strict=True)),
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
    parser.add_argument("--replicas", type=int, help="hybrid nodes; default 3, 0 with --prefill")
    parser.add_argument("--prefill", type=int, default=0, help="prefill nodes")
    parser.add_argument("--decode", type=int, default=0, help="decode nodes")
    parser.add_argument("--transport", default="auto", help="how KV moves")
    parser.add_argument("--period", type=float, default=10.0, help="seconds between kills")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--policy", default="prefix_aware")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ctrl", action="store_true", help="with Redis and dlslime-ctrl")
    parser.add_argument("--log-dir", help="keep the processes' logs here")
    args = parser.parse_args(arguments)
    args.moves_kv = args.prefill + args.decode > 0
    if args.replicas is None:
        args.replicas = 0 if args.moves_kv else 3
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="dlcore-chaos-") as folder:
        system = LocalSystem(plan(args, Path(args.log_dir or folder)))
        try:
            system.start(START_TIMEOUT_S)
            figures = asyncio.run(chaos(system, args))
        finally:
            system.stop()
    sys.stdout.write(json.dumps(asdict(figures), indent=1) + "\n")
    return 0 if figures.good else 1


if __name__ == "__main__":
    sys.exit(main())

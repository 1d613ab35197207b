"""Throws hostile messages at every port of a prefill-decode system; nothing may give way.

    python tools/fuzz_ports.py [--messages 100000] [--seed 1]

Starts a prefill and a decode node (each with two front ends, gRPC, every KV transport that works
here) and their router, finds what they listen on, and sends --messages to each listener: noise,
real messages with bytes changed, messages that lie about themselves; to the KV port also as a
reader that holds the deployment's key. Prints the figures as JSON. Exit status 1 when a process
died, an answer was a 500, bytes from outside a lease came back, memory or open files grew, KV
blocks stayed away, or a good client was not served as before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import aiohttp
from chaos_watch import NodeMetrics, resident_kib
from fuzz_kv import Intruder, KvConnection, RefusedError, read_lease
from fuzz_messages import Grpc, Http, Maker, Message, kv_frame, noise, zmtp
from listeners import Listener, listening, open_files, process_tree

from dlcore.control.child import Child, free_port
from dlcore.control.local_system import LocalPlan, LocalSystem
from dlcore.kv_ticket import KvTicket, open_ticket

LANGUAGES = ("http", "grpc", "kv", "intruder", "zmtp")
CHUNK = 500
PROCESSES, THREADS = 2, 8
IDLE_CONNECTIONS = 4  # of each chunk: they begin a message and never end it
ANSWER_TIMEOUT_S = 20.0
END_TIMEOUT_S = 2.0
RESTART_TIMEOUT_S = 5.0
LEASE_TTL_S = 10.0
SETTLE_S = 18.0  # longer than a server waits for headers
MAX_GROWTH_MIB = 40.0
MAX_MORE_FILES = 16
NEEDLE_BYTES = 48


@dataclass(frozen=True, slots=True)
class Target:
    listener: Listener
    language: str  # of LANGUAGES
    key: str | None = None  # a server's API key; the deployment's for an intruder
    node_url: str = ""  # where an intruder gets its tickets

    @property
    def name(self) -> str:
        return f"{self.listener.name} ({self.language})"

    def maker(self) -> Maker:
        makers: dict[str, Maker] = {
            "http": Http(self.key), "grpc": Grpc(self.key), "kv": kv_frame, "zmtp": zmtp,
        }  # fmt: skip
        return makers[self.language]


@dataclass(slots=True)
class Outcome:
    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.sent += other.sent
        self.answers.update(other.answers)
        self.findings += other.findings[: max(0, 20 - len(self.findings))]


# ---- one chunk, in a process of the pool


def exchange(listener: Listener, message: Message) -> bytes:
    """What came back; empty for nothing. The server has read the message when this returns."""
    with patient(listener) as connection, suppress(OSError):  # a reset is an answer too
        connection.settimeout(ANSWER_TIMEOUT_S if message.complete else END_TIMEOUT_S)
        connection.sendall(message.data)
        if not message.complete:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while len(answer) < 1 << 20 and (part := connection.recv(1 << 16)):
            answer += part
        return answer
    return b""


def patient(listener: Listener) -> socket.socket:
    """A connection, also to a server that is just starting anew. Raises OSError."""
    give_up = time.monotonic() + RESTART_TIMEOUT_S
    while True:
        try:
            return listener.connect(ANSWER_TIMEOUT_S)
        except (ConnectionRefusedError, ConnectionResetError):
            if time.monotonic() > give_up:
                raise
        time.sleep(0.05)


def judged(answer: bytes, message: Message, needles: Sequence[bytes], outcome: Outcome) -> None:
    outcome.sent += 1
    status = re.match(rb"HTTP/1\.1 (\d+)", answer)
    kind = status.group(1).decode() if status else "bytes" if answer else "nothing"
    outcome.answers[kind] += 1
    if kind == "500":
        outcome.findings.append(f"500 for {message.data[:600]!r}: {answer[-300:]!r}")
    if any(needle in answer for needle in needles):
        outcome.findings.append(f"KV of another request for {message.data[:300]!r}")


def throw(target: Target, count: int, seed: int, needles: Sequence[bytes]) -> Outcome:
    rng, maker, outcome = random.Random(seed), target.maker(), Outcome()
    for _ in range(count):
        message = maker(rng)
        judged(exchange(target.listener, message), message, needles, outcome)
    return outcome


def chunk(target: Target, count: int, seed: int, needles: Sequence[bytes]) -> Outcome:
    if target.language == "intruder":
        return intrude(target, count, seed)
    outcome = Outcome()
    rng = random.Random(seed)
    with ExitStack() as stack, ThreadPoolExecutor(THREADS) as pool:
        for _ in range(IDLE_CONNECTIONS):
            idle = stack.enter_context(patient(target.listener))
            with suppress(OSError):
                idle.sendall(target.maker()(rng).data[:5] or noise(rng))
        shares = [count // THREADS + (i < count % THREADS) for i in range(THREADS)]
        jobs = [
            pool.submit(throw, target, share, seed * THREADS + i, needles)
            for i, share in enumerate(shares)
        ]
        for job in jobs:
            outcome.add(job.result())
    return outcome


def intrude(target: Target, count: int, seed: int) -> Outcome:
    key = (target.key or "").encode()
    ticket = ask_ticket(target.node_url, key.decode(), seed)
    lease = (ticket.lease_id, ticket.epoch)

    def connect() -> KvConnection:
        return KvConnection(target.listener.connect(ANSWER_TIMEOUT_S), key)

    outcome = Outcome()
    first = connect()
    intruder = Intruder(lease, read_lease(first, lease), random.Random(seed))
    first.close()
    while intruder.sent < count:
        try:
            connection = connect()
        except RefusedError:
            outcome.findings.append("a reader with the key was refused")
            break
        intruder.attack(connection, count - intruder.sent)
        connection.close()
    outcome.sent = intruder.sent
    outcome.answers["granted"] = intruder.granted
    outcome.findings += intruder.findings
    return outcome


def post(url: str, key: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def ask_ticket(node_url: str, key: str, seed: int) -> KvTicket:
    """Of a prompt of some blocks that nobody else sends."""
    rng = random.Random(f"ticket {seed}")
    body = {
        "prompt": [rng.randrange(4, 2000) for _ in range(70)], "max_tokens": 2, "ignore_eos": True,
        "temperature": 0, "kv_transfer_params": {"do_remote_decode": True},
    }  # fmt: skip
    answer = post(node_url + "/v1/completions", key, body)
    return open_ticket(answer["kv_transfer_params"]["ticket"], key.encode())


# ---- the system


def plan(folder: Path) -> LocalPlan:
    node_args = ["--frontends", "2", "--grpc-port", "0", "--data-dir", str(folder / "data")]
    node_args += ["--num-threads", "1", "--num-kv-blocks", "1024", "--no-access-log"]
    node_args += ["--max-output-tokens", "16", "--kv-lease-ttl", str(LEASE_TTL_S)]
    node_args += ["--kv-pull-timeout", "5", "--device", "cpu", "--log-level", "error"]
    return LocalPlan(
        roles=(("prefill", 1), ("decode", 1)),
        log_dir=folder,
        router_port=free_port(),
        node_args=tuple(node_args),
        router_args=("--log-level", "error"),
    )


class System:
    def __init__(self, local: LocalSystem) -> None:
        self.local = local
        self.children = [local.router, *local.nodes]
        assert local.node_key is not None
        self.key = local.node_key
        self.prefill, self.decode = local.nodes

    def targets(self) -> list[Target]:
        ticket = ask_ticket(self.local.url_of(self.prefill), self.key, -1)
        return [target for child in self.children for target in self._of(child, ticket)]

    def _of(self, child: Child, ticket: KvTicket) -> Iterator[Target]:
        ports, paths = listening(process_tree(child.pid))
        kv = [end.partition("://")[2] for end in ticket.endpoints] if child is self.prefill else []
        for port in sorted(ports):
            if port == self.local.plan.router_port:
                yield Target(Listener(child.name, "HTTP", port), "http")
            elif child in self.local.nodes and self.local.url_of(child).endswith(f":{port}"):
                yield Target(Listener(child.name, "HTTP", port), "http", self.key)
            elif f"127.0.0.1:{port}" in kv:
                listener = Listener(child.name, "KV tcp", port)
                yield Target(listener, "kv")
                yield Target(listener, "intruder", self.key, self.local.url_of(child))
            else:  # nothing else is asked for
                yield Target(Listener(child.name, "gRPC", port), "grpc", self.key)
        for path in sorted(paths):
            if any(end.endswith(path) for end in kv):
                yield Target(Listener(child.name, "KV shm", path=path), "kv")
            else:
                name = f"ZMQ {Path(path).name}"
                yield Target(Listener(child.name, name, path=path), "zmtp")

    def needles(self) -> list[bytes]:
        """Bytes of a prompt's KV that no answer may hold."""
        ticket = ask_ticket(self.local.url_of(self.prefill), self.key, -2)
        lease = (ticket.lease_id, ticket.epoch)
        address = next(end for end in ticket.endpoints if end.startswith("tcp://"))
        listener = Listener("", "", int(address.rpartition(":")[2]))
        connection = KvConnection(listener.connect(5.0), self.key.encode())
        leased = read_lease(connection, lease)
        connection.close()
        held = [blocks[leased.blocks[1]] for blocks in leased.layers[1:]]
        return [data[len(data) // 4 :][:NEEDLE_BYTES] for data in held]

    def processes(self) -> dict[int, str]:
        return {pid: child.name for child in self.children for pid in process_tree(child.pid)}

    def answers(self) -> list[str]:
        """A good client's, by way of the router and both nodes."""
        url = self.local.router_url + "/v1/completions"
        asked = [[i + 5 + 3 * j for j in range(40)] for i in range(8)]
        body = {"max_tokens": 16, "temperature": 0, "ignore_eos": True}
        found = []
        for i, prompt in enumerate(asked):
            salt = os.urandom(4).hex()
            answer = post(url, "", {**body, "prompt": prompt, "cache_salt": f"{i} {salt}"})
            found.append(str(answer["choices"][0]["text"]))
        return found

    async def blocks_not_back(self) -> list[str]:
        async with aiohttp.ClientSession() as session:
            metrics = NodeMetrics(session, self.local)
            _, held = await metrics.seconds_until_returned(LEASE_TTL_S + 5.0)
            return held


@dataclass(slots=True)
class Report:
    seconds: float = 0.0
    messages: dict[str, int] = field(default_factory=dict)
    answers: dict[str, dict[str, int]] = field(default_factory=dict)
    growth_mib: dict[str, float] = field(default_factory=dict)  # by process, after the first fifth
    more_files: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


def bombard(
    pool: ProcessPoolExecutor,
    targets: Sequence[Target],
    count: int,
    seed: int,
    needles: list[bytes],
) -> dict[str, Outcome]:
    """`count` messages to each target, in chunks of all targets in turn."""
    outcomes = {target.name: Outcome() for target in targets}
    jobs = []
    for start in range(0, count, CHUNK):
        for i, target in enumerate(targets):
            number = seed * 1_000_000 + start * 64 + i
            work = (target, min(CHUNK, count - start), number, needles)
            jobs.append((target.name, pool.submit(chunk, *work)))
    for name, job in jobs:
        try:
            outcomes[name].add(job.result())
        except OSError as error:
            outcomes[name].findings.append(f"the port is dead: {error}")
    return outcomes


def sizes(system: System) -> dict[int, tuple[float, int]]:
    """pid -> (MiB, open files)."""
    return {pid: (resident_kib(pid) / 1024, open_files(pid)) for pid in system.processes()}


def fuzz(system: System, messages: int, seed: int, languages: Sequence[str]) -> Report:
    report, began = Report(), time.monotonic()
    want = system.answers()
    targets = [target for target in system.targets() if target.language in languages]
    needles, processes = system.needles(), system.processes()
    totals = {target.name: Outcome() for target in targets}
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        first = messages // 5
        for name, outcome in bombard(pool, targets, first, seed, needles).items():
            totals[name].add(outcome)
        before = sizes(system) if system.processes() == processes else {}
        for name, outcome in bombard(pool, targets, messages - first, seed + 1, needles).items():
            totals[name].add(outcome)
    for name, outcome in totals.items():
        report.messages[name] = outcome.sent
        report.answers[name] = dict(outcome.answers)
        report.findings += [f"{name}: {finding}" for finding in outcome.findings]
    report.seconds = round(time.monotonic() - began, 1)
    if system.processes() != processes:
        report.findings.append(f"processes were {processes}, are {system.processes()}")
    if system.answers() != want:
        report.findings.append("a good client got other answers than before")
    report.findings += asyncio.run(system.blocks_not_back())
    time.sleep(SETTLE_S)
    compare(report, system, before)
    return report


def compare(report: Report, system: System, before: dict[int, tuple[float, int]]) -> None:
    names, after = system.processes(), sizes(system)
    for pid in before.keys() & after.keys():
        name = f"{names[pid]} {pid}"
        report.growth_mib[name] = round(after[pid][0] - before[pid][0], 1)
        report.more_files[name] = after[pid][1] - before[pid][1]
    if max(report.growth_mib.values(), default=0.0) > MAX_GROWTH_MIB:
        report.findings.append("memory grew")
    if max(report.more_files.values(), default=0) > MAX_MORE_FILES:
        report.findings.append("open files grew")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--messages", type=int, default=100_000, help="to each listener")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES)
    parser.add_argument("--log-dir", help="keep the processes' logs here")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dlcore-fuzz-") as folder:
        local = LocalSystem(plan(Path(args.log_dir or folder)))
        try:
            local.start(120.0)
            report = fuzz(System(local), args.messages, args.seed, args.languages)
        finally:
            local.stop()
    sys.stdout.write(json.dumps(asdict(report), indent=1) + "\n")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())

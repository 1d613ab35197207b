"""Throws hostile messages at every port of a prefill-decode system; nothing may give way.

    python tools/fuzz_ports.py [--messages 10000] [--seed 1] [--ctrl]

Starts a prefill and a decode node (each with two front ends, gRPC, every KV transport that works
here) and their router, finds what they listen on, and sends --messages to each listener: noise,
real messages with bytes changed, messages that lie about themselves; to the KV port also as a
reader that holds the deployment's key. With --ctrl, dlslime-ctrl and Redis too get theirs: nodes
that nobody can be, among them. Prints the figures as JSON. Exit status 1 when a process of dlcore
died, an answer was a 500, bytes from outside a lease came back, memory or open files grew, KV
blocks stayed away, or a good client was not served as before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

from chaos_watch import resident_kib
from fuzz_kv import Intruder, KvConnection, RefusedError, read_lease
from fuzz_messages import Message, noise
from fuzz_targets import LANGUAGES, System, Target, ask_ticket, plan
from listeners import Listener, open_files

from dlcore.control.local_system import LocalSystem

CHUNK = 500
PROCESSES, THREADS = 2, 8
IDLE_CONNECTIONS = 4  # of each chunk: they begin a message and never end it
ANSWER_TIMEOUT_S = 20.0
END_TIMEOUT_S = 2.0
RESTART_TIMEOUT_S = 5.0
START_TIMEOUT_S = 120.0
SETTLE_S = 18.0  # longer than a server waits for headers
MIN_WARM_UP = 1000  # messages to each listener before a process is full-grown
MAX_GROWTH_MIB = 40.0
MAX_MORE_FILES = 16


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


def judge(
    answer: bytes, message: Message, target: Target, needles: Sequence[bytes], outcome: Outcome
) -> None:
    outcome.sent += 1
    status = re.match(rb"HTTP/1\.1 (\d+)", answer)
    kind = status.group(1).decode() if status else "bytes" if answer else "nothing"
    outcome.answers[kind] += 1
    if kind == "500" and target.is_ours:
        outcome.findings.append(f"500 for {message.data[:600]!r}: {answer[-300:]!r}")
    if any(needle in answer for needle in needles):
        outcome.findings.append(f"KV of another request for {message.data[:300]!r}")


def throw(target: Target, count: int, seed: int, needles: Sequence[bytes]) -> Outcome:
    rng, maker, outcome = random.Random(seed), target.maker(), Outcome()
    for _ in range(count):
        message = maker(rng)
        judge(exchange(target.listener, message), message, target, needles, outcome)
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
    outcome.answers.update(granted=intruder.granted, refused=intruder.sent - intruder.granted)
    outcome.findings += intruder.findings
    return outcome


@dataclass(slots=True)
class Report:
    seconds: float = 0.0
    total: int = 0
    messages: dict[str, int] = field(default_factory=dict)
    answers: dict[str, dict[str, int]] = field(default_factory=dict)
    mib: dict[str, tuple[int, int]] = field(default_factory=dict)  # after a fifth, and after all
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
    warm_up = messages // 5
    judges_memory = warm_up >= MIN_WARM_UP
    want = system.answers()
    if judges_memory:
        system.touch_all_blocks()
    targets = [target for target in system.targets() if target.language in languages]
    needles, processes = system.needles(), system.processes()
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        note(report, bombard(pool, targets, warm_up, seed, needles))
        before = sizes(system)
        note(report, bombard(pool, targets, messages - warm_up, seed + 1, needles))
    report.seconds = round(time.monotonic() - began, 1)
    report.total = sum(report.messages.values())
    if system.processes() != processes:
        report.findings.append(f"processes were {processes}, are {system.processes()}")
    if system.answers() != want:
        report.findings.append("a good client got other answers than before")
    report.findings += asyncio.run(system.blocks_not_back())
    if judges_memory:
        time.sleep(SETTLE_S)
        compare(report, system, before)
    return report


def note(report: Report, outcomes: dict[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        report.messages[name] = report.messages.get(name, 0) + outcome.sent
        answers = Counter(report.answers.get(name, {}))
        report.answers[name] = dict(answers + outcome.answers)
        report.findings += [f"{name}: {finding}" for finding in outcome.findings]


def compare(report: Report, system: System, before: dict[int, tuple[float, int]]) -> None:
    names, after = system.processes(), sizes(system)
    for pid in before.keys() & after.keys():
        name = f"{names[pid]} {pid}"
        report.mib[name] = (round(before[pid][0]), round(after[pid][0]))
        report.more_files[name] = after[pid][1] - before[pid][1]
        if after[pid][0] - before[pid][0] > MAX_GROWTH_MIB:
            report.findings.append(f"{name}: memory grew")
        if report.more_files[name] > MAX_MORE_FILES:
            report.findings.append(f"{name}: open files grew")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--messages", type=int, default=10_000, help="to each listener")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES)
    parser.add_argument("--ctrl", action="store_true", help="with Redis and dlslime-ctrl")
    parser.add_argument("--log-dir", help="keep the processes' logs here")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dlcore-fuzz-") as folder:
        local = LocalSystem(plan(Path(args.log_dir or folder), args.ctrl))
        try:
            local.start(START_TIMEOUT_S)
            report = fuzz(System(local), args.messages, args.seed, args.languages)
        finally:
            local.stop()
    sys.stdout.write(json.dumps(asdict(report), indent=1) + "\n")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())

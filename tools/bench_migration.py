"""What a KV transfer costs the other sequences of a decode node.

    python tools/bench_migration.py MODEL --load-format dummy --devices cuda:0,cuda:1

A prefill node in a process of its own computes a long prompt; a decode node pulls its KV while it
decodes other sequences. Prints, per transport: the time of the pull, from the request to its token
(the pull, and one step), and the gaps between tokens (ITL) of the other sequences, before each pull
and meanwhile.
tools/bench_transport.cc measures the transfer itself.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

from dlcore import AsyncLLM, SamplingParams, _core
from dlcore.config import KvTransferConfig

KEY = b"a key for this benchmark only..."
START_TIMEOUT_S = 120.0
OTHER_PROMPT, OTHER_OUTPUT = 512, 2800
SETTLE_S = 0.5
QUIET_S = 0.1  # before each pull: ITL alone
ENOUGH_S = 5.0  # of pulls, over one transport


def engine(args: argparse.Namespace, role: str, num_tokens: int, **options: Any) -> AsyncLLM:
    device = args.devices.split(",")[role == "decode"]
    return AsyncLLM(
        args.model, load_format=args.load_format, device=device, max_num_batched_tokens=4096,
        max_model_len=max(args.tokens, OTHER_PROMPT + OTHER_OUTPUT) + 16,
        num_kv_blocks=num_tokens // args.block_size,
        block_size=args.block_size,
        kv_transfer=KvTransferConfig(role=role, key=KEY, lease_ttl_s=600.0),
        **options,
    )  # fmt: skip


async def first_output(llm: AsyncLLM, prompt: Sequence[int], name: str, **options: Any) -> Any:
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    outputs = [output async for output in llm.generate(prompt, params, name, **options)]
    return outputs[-1]


def prefill_node(args: argparse.Namespace, pipe: Connection) -> None:
    """Answers each prompt with (endpoints, lease id, epoch, tokens)."""

    async def serve() -> None:
        llm = engine(args, "prefill", 2 * args.tokens + 4096, max_num_seqs=4)
        assert llm.kv_peer is not None
        pipe.send("ready")
        count = 0
        while (prompt := await asyncio.to_thread(pipe.recv)) is not None:
            count += 1
            lease = (await first_output(llm, prompt, f"p{count}", hold_kv=True)).kv_lease
            pipe.send((llm.kv_peer.endpoints, lease.lease_id, lease.epoch, lease.num_tokens))
        await llm.close()

    asyncio.run(serve())


@dataclass
class OtherSequences:
    """Sequences that decode for as long as it takes, and when their tokens came."""

    llm: AsyncLLM
    arrivals: list[list[float]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self, count: int, prompt_len: int, rng: random.Random) -> None:
        for i in range(count):
            prompt = [rng.randrange(self.llm.vocab_size) for _ in range(prompt_len)]
            self.arrivals.append([])
            self.tasks.append(asyncio.create_task(self._decode(i, prompt)))

    async def _decode(self, i: int, prompt: list[int]) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=OTHER_OUTPUT, ignore_eos=True)
        async for _ in self.llm.generate(prompt, params, f"other{i}"):
            self.arrivals[i].append(time.perf_counter())

    def gaps(self, begin: float, end: float) -> list[float]:
        """Of tokens that came in between, in ms."""
        return [
            1e3 * (b - a)
            for arrivals in self.arrivals
            for a, b in pairwise(arrivals)
            if begin < b <= end
        ]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass
class Figures:
    """Of one transport, in ms."""

    alone: list[float] = field(default_factory=list)  # gaps between the others' tokens
    beside: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)  # from request to its token
    pulls: list[float] = field(default_factory=list)  # of them, until all KV was here

    def print(self, transport: str) -> None:
        for name, gaps in (("alone", self.alone), ("meanwhile", self.beside)):
            times = " " * 17
            if name == "meanwhile":
                times = (
                    f"{statistics.median(self.pulls):8.1f} {statistics.median(self.tokens):8.1f}"
                )
            figures = " ".join(f"{percentile(gaps, p):8.2f}" for p in (0.5, 0.99, 1.0))
            print(f"{transport:<10} {name:<10} {times} {figures}  ({len(gaps)} gaps)", flush=True)


async def prefilled(pipe: Connection, prompt: list[int], transport: str) -> _core.KvSource:
    pipe.send(prompt)
    endpoints, lease_id, epoch, num_tokens = await asyncio.to_thread(pipe.recv)
    endpoint = next(e for e in endpoints if e.startswith(transport + "://"))
    return _core.KvSource(
        leases=[(endpoint, lease_id, epoch)], num_tokens=num_tokens, recompute_on_failure=False
    )


async def measure_transport(
    llm: AsyncLLM, pipe: Connection, prompt: list[int], transport: str, args: argparse.Namespace
) -> None:
    others = OtherSequences(llm)
    others.start(args.others, OTHER_PROMPT, random.Random(1))
    await asyncio.sleep(SETTLE_S)
    figures = Figures()
    for round_ in range(args.rounds + 1):
        source = await prefilled(pipe, prompt, transport)
        quiet = time.perf_counter()
        await asyncio.sleep(QUIET_S)
        pulled_s = llm.stats()["pull_time_seconds"]
        begin = time.perf_counter()
        await first_output(llm, prompt, f"{transport}{round_}", kv_source=source)
        end = time.perf_counter()
        if round_ == 0:
            continue  # it connects
        figures.alone += others.gaps(quiet, begin)
        figures.beside += others.gaps(begin, end)
        figures.tokens.append(1e3 * (end - begin))
        figures.pulls.append(1e3 * (llm.stats()["pull_time_seconds"] - pulled_s))
        if sum(figures.tokens) > 1e3 * ENOUGH_S:
            break
    await others.stop()
    figures.print(transport)


async def measure(args: argparse.Namespace, pipe: Connection) -> None:
    num_others = args.others * (OTHER_PROMPT + OTHER_OUTPUT)
    llm = engine(
        args, "decode", 2 * args.tokens + num_others, max_num_seqs=args.others + 4,
        enable_prefix_caching=False,
    )  # fmt: skip
    if not await asyncio.to_thread(pipe.poll, START_TIMEOUT_S):
        raise SystemExit("the prefill node did not start")
    pipe.recv()
    rng = random.Random(0)
    prompt = [rng.randrange(llm.vocab_size) for _ in range(args.tokens)]
    names = ("pull ms", "token ms", "p50 ms", "p99 ms", "max ms")
    print(f"{'transport':<10} {'others':<10} " + " ".join(f"{name:>8}" for name in names))
    for transport in args.transports.split(","):
        await measure_transport(llm, pipe, prompt, transport, args)
    assert llm.stats()["num_failed_migrations"] == 0
    await llm.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--devices", default="cuda:0,cuda:1", help="of the prefill, decode node")
    parser.add_argument("--transports", default="cuda_ipc,tcp")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--others", type=int, default=16, help="sequences that decode meanwhile")
    parser.add_argument("--rounds", type=int, default=16)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    node = context.Process(target=prefill_node, args=(args, there), daemon=True)
    node.start()
    try:
        asyncio.run(measure(args, here))
        here.send(None)
        node.join(20)
    finally:
        node.kill()


if __name__ == "__main__":
    main()

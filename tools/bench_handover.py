"""What it is worth that KV moves while its prompt is computed.

    python tools/bench_handover.py MODEL --load-format dummy --tokens 4096

A prefill and a decode node in one process, on one GPU or two; each prompt is one step of the
prefill node. Three ways to hand it over: asked after it (the decode node, once the prompt is
computed), a step at a time (asked at once, where steps tell of no layer) and a layer at a time.
Prints, per transport and way: the share of bytes that came early, the time from the request to the
decode node's first token, and from the request to the end of the prefill.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from dlcore import AsyncLLM, SamplingParams, _core, runner
from dlcore.config import KvTransferConfig

KEY = b"a key for this benchmark only..."
ONE_TOKEN = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
WAYS = ("after it", "by steps", "by layers")


def engine(args: argparse.Namespace, role: str) -> AsyncLLM:
    return AsyncLLM(
        args.model, load_format=args.load_format, device=args.devices.split(",")[role == "decode"],
        max_num_batched_tokens=args.tokens, max_model_len=args.tokens + 16, max_num_seqs=4,
        num_kv_blocks=3 * args.tokens // 16, enable_prefix_caching=False,
        kv_transfer=KvTransferConfig(role=role, key=KEY),
    )  # fmt: skip


@dataclass
class Handover:
    """Times in ms since the request."""

    prefill: AsyncLLM
    decode: AsyncLLM
    transport: str
    at_once: bool
    first_token: list[float] = field(default_factory=list)
    prefilled: list[float] = field(default_factory=list)

    async def one(self, prompt: list[int], name: str) -> None:
        begin = time.perf_counter()
        outputs = self.prefill.generate(prompt, ONE_TOKEN, name, hold_kv=True)
        lease = (await anext(outputs)).kv_lease
        rest = asyncio.create_task(self._end(outputs, begin))
        if not self.at_once:
            await rest
        assert lease is not None
        assert self.prefill.kv_peer is not None
        endpoints = self.prefill.kv_peer.endpoints
        endpoint = next(e for e in endpoints if e.startswith(self.transport + "://"))
        source = _core.KvSource(
            leases=[(endpoint, lease.lease_id, lease.epoch)], num_tokens=lease.num_tokens,
            recompute_on_failure=False,
        )  # fmt: skip
        async for output in self.decode.generate(prompt, ONE_TOKEN, name, kv_source=source):
            assert output.outputs[0].finish_reason != "error", output.error
        self.first_token.append(1e3 * (time.perf_counter() - begin))
        await rest

    async def _end(self, outputs: Any, begin: float) -> None:
        async for _ in outputs:
            pass
        self.prefilled.append(1e3 * (time.perf_counter() - begin))


async def measure(args: argparse.Namespace) -> None:
    reports = engine(args, "prefill")
    with patch.object(runner, "lends_kv", return_value=False):
        silent = engine(args, "prefill")
    decode = engine(args, "decode")
    rng = random.Random(0)
    print(f"{'transport':<10} {'way':<10} {'early':>6} {'token ms':>9} {'prefill ms':>11}")
    for transport in args.transports.split(","):
        handovers = [
            Handover(prefill, decode, transport, way != "after it")
            for way, prefill in zip(WAYS, (silent, silent, reports), strict=True)
        ]
        pulled = [[0.0, 0.0] for _ in WAYS]
        for round_ in range(args.rounds + 1):
            for way, handover, total in zip(WAYS, handovers, pulled, strict=True):
                if round_ == 1:
                    handover.first_token.clear()  # the first one connects
                    handover.prefilled.clear()
                    total[:] = 0.0, 0.0
                prompt = [rng.randrange(decode.vocab_size) for _ in range(args.tokens)]
                before = decode.stats()
                await handover.one(prompt, f"{transport}, {way}, {round_}")
                after = decode.stats()
                for i, key in enumerate(("num_kv_bytes_pulled_early", "num_kv_bytes_pulled")):
                    total[i] += after[key] - before[key]
        for way, handover, (early, whole) in zip(WAYS, handovers, pulled, strict=True):
            print(
                f"{transport:<10} {way:<10} {early / whole:>6.1%} "
                f"{statistics.median(handover.first_token):>9.2f} "
                f"{statistics.median(handover.prefilled):>11.2f}",
                flush=True,
            )
    for llm in (reports, silent, decode):
        assert llm.stats()["num_failed_migrations"] == 0
        await llm.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--devices", default="cuda:0,cuda:0", help="of the prefill, decode node")
    parser.add_argument("--transports", default="cuda_ipc,tcp")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=16)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()

"""Prefill and decode nodes over HTTP: what they answer together is what one node answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from tiny_checkpoints import TinyCheckpoint, tiny_checkpoint

from dlcore import AsyncLLM
from dlcore.config import KvTransferConfig
from dlcore.serve.app import build_app
from dlcore.serve.config import ServeConfig
from dlcore.serve.context import make_context

KEY = b"the deployment's key, 32 bytes.."
TRANSPORTS = ("tcp", "shm")
# Sizes of the KV pools that meet: (prefill block size, decode block size).
BLOCK_SIZES = ((16, 16), (16, 4), (8, 32))


@dataclass(frozen=True)
class Node:
    engine: AsyncLLM
    http: httpx.AsyncClient

    async def complete(self, **body: Any) -> dict[str, Any]:
        answer = await self.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def ticket(self, **body: Any) -> str:
        answer = await self.complete(**body, kv_transfer_params={"do_remote_decode": True})
        ticket: str = answer["kv_transfer_params"]["ticket"]
        return ticket

    async def blocks_return(self, within_s: float = 5.0) -> None:
        deadline = time.monotonic() + within_s
        while self.engine.stats()["num_referenced_blocks"] > 0:
            assert time.monotonic() < deadline, self.engine.stats()
            await asyncio.sleep(0.02)
        stats = self.engine.stats()
        free, cached = stats["num_free_blocks"], stats["num_cached_blocks"]
        assert free + cached == stats["num_kv_blocks"]


@pytest.fixture(scope="module", params=("qwen3", "qwen3_tied"))
def checkpoint(request: pytest.FixtureRequest) -> TinyCheckpoint:
    return tiny_checkpoint(request.param)


def kv_config(role: str, transport: str = "tcp", **options: Any) -> KvTransferConfig:
    return KvTransferConfig(**{"role": role, "key": KEY, "transport": transport, **options})


@contextlib.asynccontextmanager
async def cluster(checkpoint: TinyCheckpoint, *roles: tuple[KvTransferConfig | None, int]) -> Any:
    """Nodes of (role, block size); None = a hybrid node."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for kv, block_size in roles:
            engine = AsyncLLM(
                str(checkpoint.folder), device="cpu", block_size=block_size,
                num_kv_blocks=1024 // block_size, kv_transfer=kv, max_num_batched_tokens=64,
                max_num_seqs=16,
            )  # fmt: skip
            stack.push_async_callback(engine.close)
            app = build_app(make_context(engine, ServeConfig(access_log=False)))
            transport = httpx.ASGITransport(app=app)
            http = httpx.AsyncClient(transport=transport, base_url="http://node", timeout=60)
            nodes.append(Node(engine, await stack.enter_async_context(http)))
        yield nodes


def run(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 120))


def bodies(checkpoint: TinyCheckpoint) -> Iterator[dict[str, Any]]:
    """Greedy and sampled, short and longer than a chunk, with and without logprobs."""
    for i, prompt in enumerate(checkpoint.prompts):
        ids = prompt.prompt_ids * (1 + i % 3)
        base = {"prompt": ids[:200], "max_tokens": 12, "ignore_eos": True, "return_token_ids": True}
        yield {**base, "temperature": 0, "logprobs": 3}
        yield {**base, "temperature": 0.8, "seed": i, "repetition_penalty": 1.2, "logprobs": 0}


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    mine, theirs = got["choices"][0], want["choices"][0]
    assert mine["token_ids"] == theirs["token_ids"]
    assert mine["text"] == theirs["text"]
    assert mine["finish_reason"] == theirs["finish_reason"]
    ours, others = mine["logprobs"]["token_logprobs"], theirs["logprobs"]["token_logprobs"]
    assert ours == pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("sizes", BLOCK_SIZES)
def test_two_nodes_answer_like_one(
    checkpoint: TinyCheckpoint, transport: str, sizes: tuple[int, int]
) -> None:
    async def scene() -> None:
        roles = (kv_config("prefill", transport), kv_config("decode", transport))
        async with cluster(checkpoint, (None, 16), (roles[0], sizes[0]), (roles[1], sizes[1])) as (
            hybrid,
            prefill,
            decode,
        ):
            for body in bodies(checkpoint):
                want = await hybrid.complete(**body)
                ticket = await prefill.ticket(**body)
                got = await decode.complete(**body, kv_transfer_params={"ticket": ticket})
                assert_same(got, want)
            stats = decode.engine.stats()
            assert stats["num_failed_migrations"] == 0
            assert stats["num_migrations"] > 0
            await prefill.blocks_return()
            await decode.blocks_return()

    run(scene)


def test_two_and_two_nodes_at_once_answer_like_one() -> None:
    checkpoint = tiny_checkpoint("qwen3")

    async def scene() -> None:
        async with cluster(
            checkpoint, (None, 16), (kv_config("prefill"), 16), (kv_config("prefill", "shm"), 8),
            (kv_config("decode", "auto"), 4), (kv_config("decode", "auto"), 32),
        ) as (hybrid, *nodes):  # fmt: skip

            async def ask(i: int, body: dict[str, Any]) -> None:
                want = await hybrid.complete(**body)
                ticket = await nodes[i % 2].ticket(**body)
                decode = nodes[2 + (i // 2) % 2]
                got = await decode.complete(**body, kv_transfer_params={"ticket": ticket})
                assert_same(got, want)

            jobs = itertools.islice(itertools.cycle(bodies(checkpoint)), 32)
            await asyncio.gather(*(ask(i, body) for i, body in enumerate(jobs)))
            for node in nodes:
                await node.blocks_return()

    run(scene)

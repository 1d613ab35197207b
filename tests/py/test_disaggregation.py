"""Prefill and decode nodes over HTTP: what they answer together is what one node answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
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
async def cluster(
    checkpoint: TinyCheckpoint,
    *roles: tuple[KvTransferConfig | None, int],
    devices: tuple[str, ...] = ("cpu",),
    **options: Any,
) -> Any:
    """Nodes of (role, block size), which take turns on the devices; None = a hybrid node."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for (kv, block_size), device in zip(roles, itertools.cycle(devices), strict=False):
            engine = AsyncLLM(
                str(checkpoint.folder), device=device, block_size=block_size,
                num_kv_blocks=1024 // block_size, kv_transfer=kv, max_num_batched_tokens=64,
                max_num_seqs=16, **options,
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


@pytest.mark.parametrize("sizes", BLOCK_SIZES)
def test_two_nodes_answer_like_one(
    checkpoint: TinyCheckpoint, kv_transport: str, sizes: tuple[int, int]
) -> None:
    async def scene() -> None:
        roles = (kv_config("prefill", kv_transport), kv_config("decode", kv_transport))
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


async def expect_answers_of_one(
    hybrid: Node, nodes: Sequence[Node], checkpoint: TinyCheckpoint
) -> None:
    """32 requests at once to every pair of two prefill nodes and then two decode nodes."""

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
    for node in nodes[2:]:
        stats = node.engine.stats()
        assert stats["num_failed_migrations"] == 0
        assert stats["num_migrations"] > 0


async def two_and_two_nodes(
    checkpoint: TinyCheckpoint, prefill: tuple[str, str], decode: tuple[str, str]
) -> None:
    """Four nodes of four block sizes, over these transports."""
    async with cluster(
        checkpoint, (None, 16),
        (kv_config("prefill", prefill[0]), 16), (kv_config("prefill", prefill[1]), 8),
        (kv_config("decode", decode[0]), 4), (kv_config("decode", decode[1]), 32),
    ) as (hybrid, *nodes):  # fmt: skip
        await expect_answers_of_one(hybrid, nodes, checkpoint)


def test_two_and_two_nodes_at_once_answer_like_one(
    checkpoint: TinyCheckpoint, kv_transport: str
) -> None:
    each = (kv_transport, kv_transport)
    run(lambda: two_and_two_nodes(checkpoint, each, each))


def test_decode_nodes_pull_over_what_each_prefill_node_offers() -> None:
    checkpoint = tiny_checkpoint("qwen3")
    run(lambda: two_and_two_nodes(checkpoint, ("tcp", "shm"), ("auto", "auto")))


def one_body(checkpoint: TinyCheckpoint) -> dict[str, Any]:
    return max(bodies(checkpoint), key=lambda body: len(body["prompt"]))


def test_an_answer_of_one_token_or_an_early_stop_needs_no_other_node() -> None:
    checkpoint = tiny_checkpoint("qwen3")

    async def scene() -> None:
        async with cluster(checkpoint, (kv_config("prefill"), 16)) as (prefill,):
            body = one_body(checkpoint)
            handover = {"kv_transfer_params": {"do_remote_decode": True}}
            answer = await prefill.complete(**{**body, "max_tokens": 1}, **handover)
            assert "kv_transfer_params" not in answer
            first = answer["choices"][0]["token_ids"][0]
            answer = await prefill.complete(**{**body, "stop_token_ids": [first]}, **handover)
            assert "kv_transfer_params" not in answer
            assert answer["choices"][0]["finish_reason"] == "stop"
            await prefill.blocks_return()

    run(scene)


def test_a_ticket_is_refused_unless_signed_here_and_for_this_prompt() -> None:
    checkpoint = tiny_checkpoint("qwen3")

    async def scene() -> None:
        other_key = kv_config("decode", key=b"another deployment's key, 32 byt")
        async with cluster(
            checkpoint, (kv_config("prefill"), 16), (kv_config("decode"), 16), (other_key, 16)
        ) as (prefill, decode, stranger):
            body = one_body(checkpoint)
            ticket = await prefill.ticket(**body)
            other_prompt = {**body, "prompt": [*body["prompt"], 5]}
            forged = ticket[:10] + ("A" if ticket[10] != "A" else "B") + ticket[11:]
            for node, asked, text in (
                (stranger, body, ticket), (decode, other_prompt, ticket), (decode, body, forged),
            ):  # fmt: skip
                params = {"kv_transfer_params": {"ticket": text}}
                refused = await node.http.post("/v1/completions", json={**asked, **params})
                assert refused.status_code == 403
                assert refused.json()["error"]["code"] == "invalid_ticket"
            assert prefill.engine.stats()["num_kv_leases"] == 1
            freed = await prefill.http.post("/pd/free", json={"ticket": forged})
            assert freed.status_code == 403
            freed = await prefill.http.post("/pd/free", json={"ticket": ticket})
            assert freed.json() == {"released": True}
            await prefill.blocks_return()

    run(scene)


def test_an_unused_lease_returns_its_blocks_and_the_prompt_is_computed_again() -> None:
    checkpoint = tiny_checkpoint("qwen3")

    async def scene() -> None:
        async with cluster(
            checkpoint, (None, 16), (kv_config("prefill", lease_ttl_s=0.3), 16),
            (kv_config("decode"), 8),
        ) as (hybrid, prefill, decode):  # fmt: skip
            body = one_body(checkpoint)
            ticket = await prefill.ticket(**body)
            await prefill.blocks_return(within_s=2.0)
            params = {"kv_transfer_params": {"ticket": ticket}}
            assert_same(await decode.complete(**body, **params), await hybrid.complete(**body))

    run(scene)


@pytest.mark.parametrize("recompute", [True, False])
def test_a_prefill_node_that_died_costs_a_recompute_or_a_clear_error(recompute: bool) -> None:
    checkpoint = tiny_checkpoint("qwen3")

    async def scene() -> None:
        decode_config = kv_config("decode", recompute_on_failure=recompute, pull_timeout_s=3.0)
        async with cluster(
            checkpoint, (None, 16), (kv_config("prefill"), 16), (decode_config, 8)
        ) as (hybrid, prefill, decode):
            body = one_body(checkpoint)
            params = {"kv_transfer_params": {"ticket": await prefill.ticket(**body)}}
            await prefill.engine.close()
            answer = await decode.http.post("/v1/completions", json={**body, **params})
            if recompute:
                assert_same(answer.json(), await hybrid.complete(**body))
            else:
                assert answer.status_code == 500
                assert "migration_failed: " in answer.json()["error"]["message"]
            assert decode.engine.stats()["num_failed_migrations"] == 1
            await decode.blocks_return()

    run(scene)


def test_aborts_on_either_side_return_every_block() -> None:
    checkpoint = tiny_checkpoint("qwen3")

    async def scene() -> None:
        async with cluster(
            checkpoint, (kv_config("prefill", lease_ttl_s=3.0), 16), (kv_config("decode"), 8)
        ) as (prefill, decode):
            body = {**one_body(checkpoint), "max_tokens": 64}

            async def hurried(i: int) -> None:
                mine = {**body, "prompt": [*body["prompt"], i]}

                async def ask() -> None:
                    ticket = await prefill.ticket(**mine)
                    await decode.complete(**mine, kv_transfer_params={"ticket": ticket})

                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(ask(), 0.02 * (i % 12))

            await asyncio.gather(*(hurried(i) for i in range(40)))
            # A ticket whose client went away is a lease nobody reads: its TTL ends it.
            for node in (prefill, decode):
                await node.blocks_return(within_s=10.0)

    run(scene)

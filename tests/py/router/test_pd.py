"""Prefill and decode nodes behind the router answer as one node does, whichever of them dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from router.test_router import streamed, text_in, until
from serve.live_server import LiveServer, live_server
from tiny_checkpoints import tiny_checkpoint

from dlcore import AsyncLLM
from dlcore.config import KvTransferConfig
from dlcore.router.app import make_app
from dlcore.router.backend import Role
from dlcore.router.config import RouterConfig

KEY = "a deployment's key of many bytes"
ROLES = ("prefill", "prefill", "decode", "decode")


class System:
    def __init__(
        self, roles: tuple[str, ...], nodes: list[LiveServer], client: httpx.AsyncClient
    ) -> None:
        self.roles = roles
        self.nodes = nodes
        self.client = client

    def stats(self, role: str) -> list[dict[str, float]]:
        pairs = zip(self.roles, self.nodes, strict=True)
        return [node.engine.stats() for kind, node in pairs if kind == role]

    async def whole(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = await self.client.post("/v1/completions", json=request)
        assert answer.status_code == 200, answer.text
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice


@asynccontextmanager
async def system(roles: tuple[str, ...] = ROLES, **options: Any) -> AsyncIterator[System]:
    """`options`: of every node's engine."""
    folder = str(tiny_checkpoint("qwen3").folder)
    with contextlib.ExitStack() as stack:
        nodes = []
        for i, role in enumerate(roles):
            kv = KvTransferConfig(role=role, key=KEY.encode(), lease_ttl_s=3.0)
            engine = AsyncLLM(
                folder, device="cpu", block_size=4 << i, num_kv_blocks=512, kv_transfer=kv,
                **options,
            )  # fmt: skip
            nodes.append(stack.enter_context(live_server(engine, api_key=(KEY,))))
        pairs = zip(roles, nodes, strict=True)
        config = RouterConfig(
            backends=tuple((node.base, Role(role)) for role, node in pairs),
            policy="round_robin", check_interval_s=0.1, backend_api_key=KEY,
        )  # fmt: skip
        app = make_app(config)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://router", timeout=60) as client,
        ):
            pool = app.state.router.pool
            await until(lambda: len(pool.candidates(None, roles=tuple(Role))) == len(nodes))
            await until(lambda: all(backend.resumable for backend in pool))
            yield System(roles, nodes, client)


def requests(count: int) -> list[dict[str, Any]]:
    prompts = [p.prompt_ids for p in tiny_checkpoint("qwen3").prompts]
    longest = max(prompts, key=len)
    return [
        {
            "prompt": [*longest[: 8 + i], i + 1], "max_tokens": 16, "seed": i, "ignore_eos": True,
            "temperature": 0.0 if i % 2 else 0.8,
        }
        for i in range(count)
    ]  # fmt: skip


async def alone(asked: list[dict[str, Any]]) -> list[str]:
    engine = AsyncLLM(str(tiny_checkpoint("qwen3").folder), device="cpu", num_kv_blocks=512)
    with live_server(engine) as node:
        async with httpx.AsyncClient(base_url=node.base, timeout=60) as client:
            answers = [await client.post("/v1/completions", json=request) for request in asked]
    return [answer.json()["choices"][0]["text"] for answer in answers]


def run(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 120))


async def all_blocks_return(running: System) -> None:
    def returned() -> bool:
        stats = [*running.stats("prefill"), *running.stats("decode")]
        return all(s["num_referenced_blocks"] == 0 for s in stats)

    await until(returned)


def test_two_prefill_and_two_decode_nodes_answer_like_one() -> None:
    async def scene() -> None:
        asked = requests(12)
        want = await alone(asked)
        async with system() as running:
            whole = await asyncio.gather(*(running.whole(request) for request in asked))
            assert [choice["text"] for choice in whole] == want
            streams = await asyncio.gather(*(streamed(running.client, r) for r in asked))
            assert [text_in(events) for events in streams] == want
            decodes = running.stats("decode")
            assert all(s["num_migrations"] > 0 for s in decodes)
            assert all(s["num_failed_migrations"] == 0 for s in decodes)
            await all_blocks_return(running)

    run(scene)


def test_a_prefill_node_answers_a_request_for_one_token_and_nobody_computes_it_again() -> None:
    async def scene() -> None:
        (request,) = requests(1)
        async with system() as running:
            choice = await running.whole({**request, "max_tokens": 1})
            assert choice["finish_reason"] == "length"
            await until(lambda: sum(s["num_finished"] for s in running.stats("prefill")) == 1)
            assert all(s["num_prompt_tokens"] == 0 for s in running.stats("decode"))
            assert all(s["num_leases_granted"] == 0 for s in running.stats("prefill"))

    run(scene)


def test_dead_prefill_and_decode_nodes_cost_no_answer() -> None:
    async def scene() -> None:
        asked = requests(12)
        want = await alone(asked)
        async with system() as running:
            work = asyncio.gather(*(streamed(running.client, request) for request in asked))
            await asyncio.sleep(0.15)
            for node in (running.nodes[0], running.nodes[2]):
                await asyncio.to_thread(node.stop)
            assert [text_in(events) for events in await work] == want
            again = await asyncio.gather(*(streamed(running.client, r) for r in asked))
            assert [text_in(events) for events in again] == want

    run(scene)


def test_prefill_nodes_that_are_alone_answer_whole_requests() -> None:
    async def scene() -> None:
        asked = requests(6)
        want = await alone(asked)
        async with system() as running:
            work = asyncio.gather(*(streamed(running.client, request) for request in asked))
            await asyncio.sleep(0.1)
            for node in running.nodes[2:]:
                await asyncio.to_thread(node.stop)
            assert [text_in(events) for events in await work] == want
            whole = await asyncio.gather(*(running.whole(request) for request in asked))
            assert [choice["text"] for choice in whole] == want

    run(scene)

"""A decode node pulls a prompt's KV while the prefill node still computes the prompt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from router.step_gate import StepGate, gates_of_new_engines, layer_gates_of_new_engines
from router.test_pd import ROLES, System, all_blocks_return, alone, system
from router.test_router import streamed, text_in, until
from tiny_checkpoints import tiny_checkpoint

PAIR = ("prefill", "decode")
CHUNK = 32
PROMPT_LEN = 5 * CHUNK


def requests(count: int) -> list[dict[str, Any]]:
    """Prompts of several chunks, with nothing in common."""
    vocab = max(max(p.prompt_ids) for p in tiny_checkpoint("qwen3").prompts)
    return [
        {
            "prompt": [(31 * i + 7 * j + i * j) % vocab for j in range(PROMPT_LEN + 3 * i)],
            "max_tokens": 12, "seed": i, "ignore_eos": True, "temperature": 0.0 if i % 2 else 0.8,
            "return_token_ids": True,
        }
        for i in range(count)
    ]  # fmt: skip


class Held:
    """Nodes whose prefill engines stop in the middle of their first prompt."""

    def __init__(self, running: System, gates: list[StepGate]) -> None:
        self.running = running
        pairs = zip(running.roles, gates, strict=True)
        self.gates = [gate for role, gate in pairs if role == "prefill"]
        for gate in self.gates:
            gate.close_after(2)

    def served_early(self) -> bool:
        nodes = self.running.stats("prefill")
        return all(node["num_kv_bytes_served_early"] > 0 for node in nodes)

    def open(self) -> None:
        for gate in self.gates:
            gate.open()

    async def given_up(self) -> None:
        """Every node has told its engine that nobody waits for an answer any more."""
        nodes = self.running.nodes
        await until(lambda: not any(node.engine.num_unfinished_requests for node in nodes))
        for node in nodes:  # the turn of its event loop that gave the request up is over
            await asyncio.to_thread(node.finish, asyncio.sleep(0))

    async def settled(self) -> None:
        """Every block is back, and every lease ended in one way."""
        await all_blocks_return(self.running)
        for node in self.running.stats("prefill"):
            ends = [node[f"num_leases_{how}"] for how in ("released", "aborted", "expired")]
            assert node["num_leases_granted"] == sum(ends)


Holding = Callable[[tuple[str, ...]], Any]


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> Holding:
    gates = gates_of_new_engines(monkeypatch)

    @asynccontextmanager
    async def nodes(roles: tuple[str, ...]) -> AsyncIterator[Held]:
        del gates[:]
        async with system(roles, max_num_batched_tokens=CHUNK) as running:
            held = Held(running, gates)
            try:
                yield held
            finally:
                held.open()

    return nodes


def run(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 120))


@pytest.mark.parametrize("roles", [PAIR, ROLES], ids=["1P1D", "2P2D"])
def test_bytes_move_before_the_prompt_is_computed_and_answers_are_those_of_one_node(
    holding: Holding, roles: tuple[str, ...]
) -> None:
    async def scene() -> None:
        asked = requests(8)
        want = await alone(asked)
        async with holding(roles) as held:
            running = held.running
            whole = asyncio.gather(*(running.whole(request) for request in asked[::2]))
            streams = asyncio.gather(*(streamed(running.client, r) for r in asked[1::2]))
            await until(held.served_early)
            assert not whole.done()
            assert not streams.done()
            held.open()
            assert [choice["text"] for choice in await whole] == want[::2]
            assert [text_in(events) for events in await streams] == want[1::2]
            await held.settled()
            for node in running.stats("decode"):
                assert node["num_failed_migrations"] == 0
                assert 0 < node["num_kv_bytes_pulled_early"] < node["num_kv_bytes_pulled"]

    run(scene)


def test_a_prompt_of_one_step_moves_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = json.loads((tiny_checkpoint("qwen3").folder / "config.json").read_text())
    num_layers = model["num_hidden_layers"]
    token_bytes = 2 * 4 * model["num_key_value_heads"] * model["head_dim"]  # of a layer
    gates = layer_gates_of_new_engines(monkeypatch)

    async def scene() -> None:
        (request,) = requests(1)
        want = await alone([request])
        async with system(PAIR, max_num_batched_tokens=PROMPT_LEN) as running:
            (gate,) = gates
            gate.close_after(num_layers - 1)
            work = asyncio.create_task(running.whole(request))
            early = (num_layers - 1) * (PROMPT_LEN - 1) * token_bytes
            await until(lambda: running.stats("prefill")[0]["num_kv_bytes_served_early"] == early)
            assert not work.done()
            gate.open()
            assert (await work)["text"] == want[0]
            await all_blocks_return(running)
            (decode,) = running.stats("decode")
            assert decode["num_failed_migrations"] == 0
            assert decode["num_kv_bytes_pulled_early"] == early
            assert decode["num_kv_bytes_pulled"] * (num_layers - 1) == early * num_layers

    run(scene)


def test_a_client_that_leaves_ends_the_computation_and_the_pull(holding: Holding) -> None:
    async def scene() -> None:
        (request,) = requests(1)
        async with holding(PAIR) as held:
            work = asyncio.create_task(streamed(held.running.client, request))
            await until(held.served_early)
            work.cancel()
            await asyncio.wait({work})
            await held.given_up()
            held.open()
            await held.settled()
            (prefill,), (decode,) = held.running.stats("prefill"), held.running.stats("decode")
            assert prefill["num_generated_tokens"] == 0
            assert decode["num_generated_tokens"] == 0
            assert decode["num_pulls_completed"] == 0

    run(scene)


def test_an_answer_that_its_first_token_ends_is_pulled_once_and_not_computed_again(
    holding: Holding,
) -> None:
    async def scene() -> None:
        request = {**requests(1)[0], "temperature": 0.0}
        async with holding(PAIR) as held:
            held.open()
            first = (await held.running.whole(request))["token_ids"][0]
        async with holding(PAIR) as held:
            work = asyncio.create_task(
                held.running.whole({**request, "stop_token_ids": [first], "ignore_eos": False})
            )
            await until(held.served_early)
            held.open()
            choice = await work
            assert (choice["text"], choice["finish_reason"]) == ("", "stop")
            await held.settled()
            (decode,) = held.running.stats("decode")
            assert decode["num_pulls_completed"] == 1
            assert decode["num_failed_migrations"] == 0

    run(scene)


def test_a_prefill_node_that_goes_away_midway_costs_a_recompute(holding: Holding) -> None:
    async def scene() -> None:
        asked = requests(1)
        want = await alone(asked)
        async with holding(PAIR) as held:
            work = asyncio.create_task(streamed(held.running.client, asked[0]))
            await until(held.served_early)
            held.open()
            await asyncio.to_thread(held.running.nodes[0].stop)
            assert text_in(await work) == want[0]
            await until(lambda: held.running.stats("decode")[0]["num_referenced_blocks"] == 0)

    run(scene)

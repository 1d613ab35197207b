"""Prefill and decode nodes with several front ends hand over as those with one do."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from frontends.test_frontends import Served, until

from dlcore.bundled_model import has_bundled_model

pytestmark = pytest.mark.skipif(not has_bundled_model(), reason="no bundled model")

KEY = "a-deployment-key-of-many-bytes"
HEADERS = {"authorization": f"Bearer {KEY}"}
TTL_S = 2.0


class Node:
    """Each call is a new connection, so that the kernel spreads them over the front ends."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(self.served.base + path, json=body, headers=HEADERS, timeout=60)

    def complete(self, body: dict[str, Any], **params: Any) -> dict[str, Any]:
        fields = {"kv_transfer_params": params} if params else {}
        answer = self.post("/v1/completions", {**body, **fields})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ticket(self, body: dict[str, Any]) -> str:
        answer = self.complete(body, do_remote_decode=True)
        ticket: str = answer["kv_transfer_params"]["ticket"]
        return ticket

    def metric(self, name: str) -> float:
        page = httpx.get(f"{self.served.base}/metrics", headers=HEADERS, timeout=30).text
        line = next(line for line in page.splitlines() if line.startswith(f"dlcore:{name}{{"))
        return float(line.split()[-1])

    def blocks_return(self, within_s: float) -> None:
        until(lambda: self.metric("kv_leases") + self.metric("kv_cache_used_blocks") == 0, within_s)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    key_file = tmp_path_factory.mktemp("roles") / "key"
    Path(key_file).write_text(KEY)
    common = ("--kv-key-file", str(key_file), "--num-kv-blocks", "512", "--num-threads", "1")
    prefill = Served("--role", "prefill", "--kv-lease-ttl", str(TTL_S), *common)
    decode = Served("--role", "decode", "--block-size", "8", *common)
    yield Node(prefill), Node(decode)
    assert prefill.end() == 0
    assert decode.end() == 0


def bodies(count: int, salt: str) -> Iterator[dict[str, Any]]:
    for i in range(count):
        prompt = [(7 * i + 3 * j) % 2000 + 4 for j in range(40 + 5 * i)]
        yield {
            "prompt": prompt, "max_tokens": 12, "ignore_eos": True, "seed": i,
            "temperature": i % 2, "cache_salt": salt, "return_token_ids": True,
        }  # fmt: skip


def tokens(answer: dict[str, Any]) -> list[int]:
    found: list[int] = answer["choices"][0]["token_ids"]
    return found


def test_tokens_are_those_of_one_node_whichever_front_end_is_asked(
    nodes: tuple[Node, Node],
) -> None:
    prefill, decode = nodes
    for body in bodies(10, "handed over"):
        want = tokens(prefill.complete({**body, "cache_salt": "alone"}))
        got = decode.complete(body, ticket=prefill.ticket(body))
        assert tokens(got) == want
    until(lambda: decode.metric("kv_pulls_total") == 10, 2.0)
    assert decode.metric("kv_pull_failures_total") == 0
    until(lambda: decode.metric("kv_pulled_bytes_total") > 0, 2.0)
    until(lambda: prefill.metric("kv_leases_released_total") == 10, 2.0)
    prefill.blocks_return(1.0)  # at once: the lease's time is twice as long
    decode.blocks_return(1.0)


def test_a_stream_is_the_ticket_and_then_its_end(nodes: tuple[Node, Node]) -> None:
    prefill, decode = nodes
    for body in bodies(6, "streamed"):
        want = tokens(prefill.complete({**body, "cache_salt": "alone"}))
        asked = {**body, "stream": True, "kv_transfer_params": {"do_remote_decode": True}}
        events = prefill.post("/v1/completions", asked).text.split("\n\n")
        first, end, rest = events
        assert (end, rest) == ("data: [DONE]", "")
        ticket = json.loads(first.removeprefix("data: "))["kv_transfer_params"]["ticket"]
        assert tokens(decode.complete(body, ticket=ticket)) == want
    prefill.blocks_return(1.0)
    decode.blocks_return(1.0)


def test_any_front_end_frees_a_ticket_once(nodes: tuple[Node, Node]) -> None:
    prefill, _ = nodes
    for body in bodies(6, "freed"):
        ticket = prefill.ticket(body)
        assert prefill.post("/pd/free", {"ticket": ticket}).json() == {"released": True}
        assert prefill.post("/pd/free", {"ticket": ticket}).json() == {"released": False}
    prefill.blocks_return(1.0)


def test_a_forged_ticket_is_refused_by_every_front_end(nodes: tuple[Node, Node]) -> None:
    prefill, decode = nodes
    (body,) = bodies(1, "forged")
    ticket = prefill.ticket(body)
    forged = ticket[:-1] + ("0" if ticket[-1] != "0" else "1")
    for _ in range(4):
        refused = decode.post("/v1/completions", {**body, "kv_transfer_params": {"ticket": forged}})
        assert refused.status_code == 403
        assert prefill.post("/pd/free", {"ticket": forged}).status_code == 403
    assert prefill.post("/pd/free", {"ticket": ticket}).json() == {"released": True}


def test_a_front_end_that_dies_leaves_its_leases_to_their_time(nodes: tuple[Node, Node]) -> None:
    prefill, decode = nodes
    asked = list(bodies(6, "a front end dies"))
    want = [tokens(prefill.complete({**body, "cache_salt": "alone"})) for body in asked]
    tickets = [prefill.ticket(body) for body in asked]
    before = prefill.served.children()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(prefill.served.children() - before) == 1)
    began = time.monotonic()
    got = [
        tokens(decode.complete(body, ticket=ticket))
        for body, ticket in zip(asked[:3], tickets[:3], strict=True)
    ]
    assert got == want[:3]
    prefill.blocks_return(TTL_S + 3.0 - (time.monotonic() - began))

"""The router in front of nodes that die, freeze, refuse and come back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from router.fake_node import NAMED_TOKENS, Ear, FakeNode, text_of

from dlcore.router.app import make_app
from dlcore.router.backend import Role
from dlcore.router.config import RouterConfig
from dlcore.router.retry_budget import RetryBudget
from dlcore.router.sse import EventSplitter


@contextlib.contextmanager
def nodes(count: int, **options: Any) -> Iterator[list[FakeNode]]:
    started = [FakeNode(**options).start() for _ in range(count)]
    try:
        yield started
    finally:
        for node in started:
            node.freeze = False
            node.stop()


@asynccontextmanager
async def routing(backends: list[FakeNode], **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a router whose nodes are all up, and stay so while they are only slow."""
    settings = {
        "policy": "round_robin",
        "check_interval_s": 0.05,
        "check_timeout_s": 30.0,
        "backend_wait_s": 30.0,
        **config,
    }
    app = make_app(RouterConfig(backends=tuple((n.url, Role.HYBRID) for n in backends), **settings))
    ear = Ear(app)
    for node in backends:
        node.heard = lambda: ear.num_events
    transport = httpx.ASGITransport(ear)
    headers = {"authorization": f"Bearer {(config.get('api_key') or ('',))[0]}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://router", headers=headers) as client,
    ):
        router = app.state.router
        await until(lambda: len(router.pool.candidates(None)) == len(backends))
        yield client


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline, "not within 30 s"
        await asyncio.sleep(0.01)


def body(prompt: str, count: int, **more: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": prompt, "max_tokens": count, **more}


async def streamed(client: httpx.AsyncClient, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, which must end with [DONE]."""
    answer = await client.post("/v1/completions", json={**request, "stream": True})
    assert answer.status_code == 200, answer.text
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-3:]
    return [json.loads(line) for line in lines[:-1]]


def text_in(events: list[dict[str, Any]]) -> str:
    return "".join(c["text"] for e in events for c in e["choices"])


async def test_answers_are_those_of_the_node() -> None:
    with nodes(2) as started:
        async with routing(started) as client:
            for i in range(4):
                answer = await client.post("/v1/completions", json=body(f"p{i}", 5))
                assert answer.json()["choices"][0]["text"] == text_of(f"p{i}", 5)
                assert text_in(await streamed(client, body(f"p{i}", 5))) == text_of(f"p{i}", 5)
        assert all(len(node.requests) == 4 for node in started)


async def test_a_client_that_leaves_amid_its_request_is_no_error() -> None:
    app = make_app(RouterConfig(backends=(("http://127.0.0.1:9", Role.HYBRID),)))
    messages = [
        {"type": "http.request", "body": b'{"prompt":', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    async with app.router.lifespan_context(app):
        await app({**scope, "query_string": b"", "http_version": "1.1"}, receive, send)
    assert sent[0]["status"] == 499


async def test_a_stream_goes_on_when_its_node_dies() -> None:
    with nodes(2) as (first, second):
        first.die_after = 3
        async with routing([first, second]) as client:
            for _ in range(4):
                events = await streamed(client, body("hello", 20))
                assert text_in(events) == text_of("hello", 20)
                assert len({(e["id"], e["created"]) for e in events}) == 1
                assert not any("token_ids" in c for e in events for c in e["choices"])
        resumed = [r for r in second.requests if "resume_token_ids" in r]
        assert resumed
        assert all(len(r["resume_token_ids"][0]) == 3 for r in resumed)


async def test_a_stream_survives_node_after_node() -> None:
    with nodes(3) as started:
        for node in started:
            node.die_after = 4
        async with routing(started, failures_until_down=1000, max_attempts=20) as client:
            assert text_in(await streamed(client, body("x", 20))) == text_of("x", 20)


async def test_a_frozen_node_is_left_for_another() -> None:
    with nodes(2) as (first, second):
        first.delay_s = second.delay_s = 0.01
        async with routing([first, second], check_timeout_s=0.3) as client:
            pending = [
                asyncio.ensure_future(streamed(client, body(f"p{i}", 100))) for i in range(4)
            ]
            await until(lambda: first.running > 0 and second.running > 0)
            await asyncio.sleep(0.2)
            first.freeze = True
            texts = [text_in(events) for events in await asyncio.gather(*pending)]
        assert texts == [text_of(f"p{i}", 100) for i in range(4)]


async def test_the_token_ids_a_client_asked_for_are_kept() -> None:
    with nodes(1) as started:
        async with routing(started) as client:
            events = await streamed(client, body("x", 3, return_token_ids=True))
    assert all(len(c["token_ids"]) == 1 for e in events for c in e["choices"])


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_refusal_is_tried_elsewhere(status: int) -> None:
    with nodes(2) as (first, second):
        first.status = status
        async with routing([first, second]) as client:
            for _ in range(4):
                assert text_in(await streamed(client, body("x", 3))) == text_of("x", 3)
                answer = await client.post("/v1/completions", json=body("x", 3))
                assert answer.status_code == 200


async def test_the_clients_own_mistake_is_not_retried() -> None:
    with nodes(2) as started:
        for node in started:
            node.status = 400
        async with routing(started) as client:
            answer = await client.post("/v1/completions", json=body("x", 3, stream=True))
            assert answer.status_code == 400
        assert sum(len(node.requests) for node in started) == 1


async def test_without_any_node_there_is_one_clear_error() -> None:
    async with routing([], backend_wait_s=0.1) as client:
        answer = await client.post("/v1/completions", json=body("x", 3))
        assert answer.status_code == 503
        assert "no node is up" in answer.json()["error"]["message"]
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200


async def test_a_request_waits_for_a_node_to_come_back() -> None:
    with nodes(1) as (node,):
        node.freeze = True
        async with routing([]) as client:
            joined = await client.post("/backends", json={"action": "join", "url": node.url})
            assert joined.status_code == 200
            pending = asyncio.ensure_future(streamed(client, body("x", 3)))
            await asyncio.sleep(0.5)
            node.freeze = False
            assert text_in(await pending) == text_of("x", 3)


async def test_a_draining_node_finishes_and_takes_nothing_new() -> None:
    with nodes(2) as (first, second):
        first.delay_s = 0.01
        async with routing([first]) as client:
            pending = asyncio.ensure_future(streamed(client, body("x", 60)))
            await until(lambda: first.running == 1)
            for action, url in (("join", second.url), ("drain", first.url)):
                await client.post("/backends", json={"action": action, "url": url})
            seen = len(first.requests)
            for _ in range(4):
                await streamed(client, body("y", 2))
            assert len(first.requests) == seen
            assert text_in(await pending) == text_of("x", 60)
            states = (await client.get("/backends")).json()["backends"]
            assert [b["state"] for b in states] == ["draining", "up"]


async def test_a_lost_nodes_silent_streams_go_on_elsewhere_when_it_leaves() -> None:
    with nodes(2) as (first, second):
        first.delay_s = 0.02
        async with routing([first], failures_until_down=1000) as client:
            pending = asyncio.ensure_future(streamed(client, body("x", 100)))
            await until(lambda: first.running == 1)
            first.freeze = True
            for action, url in (("join", second.url), ("leave", first.url)):
                await client.post("/backends", json={"action": action, "url": url})
            assert text_in(await pending) == text_of("x", 100)
        assert second.requests


async def test_other_engines_fail_over_before_the_first_token_alone() -> None:
    with nodes(2, owned_by="someone") as (first, second):
        first.die_after = 0
        async with routing([first, second]) as client:
            for _ in range(2):
                assert text_in(await streamed(client, body("x", 5))) == text_of("x", 5)
        assert not any("resume_token_ids" in r for r in first.requests + second.requests)


@pytest.mark.parametrize("trouble", [{"status": 503}, {"die_after": 0}, {"die_after": 2}])
async def test_named_events_go_on_at_another_node(trouble: dict[str, int]) -> None:
    with nodes(2) as (bad, good):
        for name, value in trouble.items():
            setattr(bad, name, value)
        async with routing([bad, good]) as client:
            for _ in range(3):
                events = await named_events(client)
                kinds = [event["type"].removeprefix("response.") for event in events]
                assert kinds == ["created", *["output_text.delta"] * NAMED_TOKENS, "completed"]
                assert "".join(e.get("delta", "") for e in events) == text_of("x", NAMED_TOKENS)
                assert events[0]["response"]["id"] == events[-1]["response"]["id"]
        assert bad.requests


async def test_named_events_of_other_engines_end_with_an_error_event() -> None:
    with nodes(2, owned_by="someone") as (one, two):
        one.die_after = two.die_after = 2
        async with routing([one, two]) as client:
            events = await named_events(client)
            metrics = (await client.get("/metrics")).text
        assert [event["type"] for event in events[3:]] == ["error"]
        assert "dlcore_router:broken_streams_total 1.0" in metrics


async def named_events(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    reply = await client.post("/v1/responses", json={"input": "x", "stream": True})
    assert reply.status_code == 200
    events = [event.split("\n") for event in reply.text.split("\n\n") if event]
    decoded: list[dict[str, Any]] = [json.loads(data[6:]) for _, data in events]
    assert [name for name, _ in events] == [f"event: {event['type']}" for event in decoded]
    return decoded


async def test_models_are_told_apart() -> None:
    with nodes(1, model="a") as (a,), nodes(1, model="b") as (b,):
        async with routing([a, b]) as client:
            for name in ("a", "b", "b"):
                await streamed(client, {**body("x", 2), "model": name})
            assert [len(a.requests), len(b.requests)] == [1, 2]
            unknown = await client.post("/v1/completions", json={**body("x", 2), "model": "c"})
            assert unknown.status_code == 404
            names = [m["id"] for m in (await client.get("/v1/models")).json()["data"]]
            assert names == ["a", "b"]


async def test_every_path_but_liveness_needs_the_key() -> None:
    with nodes(1) as started:
        async with routing(started, api_key=("k",)) as client:
            assert (await client.get("/v1/models")).status_code == 200
            client.headers["authorization"] = "Bearer wrong"
            for path in ("/v1/models", "/metrics", "/backends", "/ready"):
                assert (await client.get(path)).status_code == 401
            for path in ("/v1/completions", "/backends", "/v1/messages"):
                assert (await client.post(path, json={})).status_code == 401
            assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_object_is_refused(raw: bytes) -> None:
    async with routing([]) as client:
        assert (await client.post("/v1/completions", content=raw)).status_code == 400


def test_the_retry_budget_is_a_bound() -> None:
    clock = [0.0]
    budget = RetryBudget(per_request=0.5, per_second=1.0, now=lambda: clock[0])
    assert sum(budget.try_retry() for _ in range(100)) == 10
    for _ in range(10):
        budget.request()
    assert sum(budget.try_retry() for _ in range(100)) == 5
    clock[0] = 3.0
    assert sum(budget.try_retry() for _ in range(100)) == 3


def test_events_are_whole_however_the_bytes_are_cut() -> None:
    raw = b"data: {}\n\ndata: one\r\n\r\n: comment\n\ndata: [DONE]\n\n"
    expected = [b"data: {}", b"data: one", b": comment", b"data: [DONE]"]
    for cut in range(len(raw)):
        splitter = EventSplitter()
        assert splitter.push(raw[:cut]) + splitter.push(raw[cut:]) == expected

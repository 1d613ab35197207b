"""A stream of named events that is cut anywhere and goes on at another server is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serve.fake_client import FakeEngine
from serve.live_server import live_server

from dlcore import AsyncLLM
from dlcore.router.resume_events import ResumableEvents
from dlcore.router.sse import EventSplitter

QUESTION = "What is 17 + 25? Explain."
RESPONSES: dict[str, Any] = {"input": QUESTION, "max_output_tokens": 20}
MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 20}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "responses, greedy": ("responses", {**RESPONSES, "temperature": 0.0}),
    "responses, seeded": ("responses", {**RESPONSES, "temperature": 1.0, "seed": 5}),
    "messages, greedy": ("messages", {**MESSAGES, "temperature": 0.0}),
    "messages, drawn by the router's seed": ("messages", {**MESSAGES, "temperature": 1.0}),
}
SCRIPT = (
    "<think>\nLet me see.\n</think>\n\nIt is fine.\n"
    '<tool_call>\n{"name": "look", "arguments": {"at": "the sky", "how": "twice"}}\n</tool_call>'
)
LOOK = {"type": "object", "properties": {"at": {"type": "string"}, "how": {"type": "string"}}}
Event = dict[str, Any]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    engine: Any = AsyncLLM(num_kv_blocks=512, max_num_seqs=8, enable_prefix_caching=False)
    with live_server(engine) as server, httpx.Client(base_url=server.base, timeout=60) as client:
        yield client
        server.finish(engine.close())


def sent_by_node(http: httpx.Client, path: str, body: Event) -> list[bytes]:
    reply = http.post(f"/v1/{path}", json={**body, "stream": True})
    assert reply.status_code == 200, reply.text
    return EventSplitter().push(reply.content)


def relayed(
    http: httpx.Client, path: str, body: Event, cut: int | None, seed: int
) -> tuple[list[Event], int]:
    """What a client gets whose first node dies after `cut` events, and how many that node had."""
    stream = ResumableEvents({**body, "seed": body.get("seed", seed)})
    first = sent_by_node(http, path, stream.request("r"))
    attempts = [first[:cut]]
    client = b"".join(pass_on(stream, attempts[0]))
    if cut is not None and not stream.complete:
        client += b"".join(pass_on(stream, sent_by_node(http, path, stream.request("r"))))
    assert stream.complete
    return [told(event) for event in EventSplitter().push(client)], len(first)


def pass_on(stream: ResumableEvents, events: list[bytes]) -> Iterator[bytes]:
    for event in events:
        data = stream.data_of(event)
        assert data is not None
        yield stream.accept(data)


def told(event: bytes) -> Event:
    name, data = event.split(b"\n", 1)
    decoded: Event = json.loads(data.removeprefix(b"data: "))
    assert name == b"event: " + decoded["type"].encode()
    assert decoded["type"] != "dlcore.token_ids"
    return decoded


def without_chance(events: list[Event]) -> list[Event]:
    """Each name by its first place, times left out, deltas joined as far as they follow."""
    names: dict[str, str] = {}

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: plain(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v, key) for v in value]
        if key in ("id", "item_id", "call_id"):
            return names.setdefault(value, f"name {len(names)}")
        return None if key == "created_at" else value

    joined: list[Event] = []
    for number, event in enumerate(events):
        assert event.pop("sequence_number", number) == number
        event = plain(event)
        last = joined[-1] if joined else {}
        delta = event.get("delta")
        if delta is None or event["type"] != last.get("type") or "stop_reason" in delta:
            joined.append(event)
        elif isinstance(delta, str):
            last["delta"] += delta
        else:
            key = next(k for k in delta if k != "type")
            last["delta"] = {**delta, key: last["delta"].get(key, "") + delta[key]}
    return joined


def check_every_cut(http: httpx.Client, path: str, body: Event) -> list[Event]:
    """The law. Another node goes on after any number of events, and the client sees no seam."""
    events, count = relayed(http, path, body, None, seed=7)
    whole = without_chance(events)
    assert count >= 6
    for cut in range(count + 1):
        events, _ = relayed(http, path, body, cut, seed=7)
        assert without_chance(events) == whole, f"cut after event {cut}"
    return whole


@pytest.mark.parametrize("name", CASES)
def test_a_cut_stream_goes_on_as_if_it_were_whole(http: httpx.Client, name: str) -> None:
    check_every_cut(http, *CASES[name])


@pytest.mark.parametrize("path", ["responses", "messages"])
def test_reasoning_text_and_calls_keep_their_items(path: str) -> None:
    engine = FakeEngine(reply=SCRIPT)
    responses: Event = {
        "input": QUESTION,
        "tools": [{"type": "function", "name": "look", "parameters": LOOK}],
    }
    tool = {"name": "look", "input_schema": LOOK}
    messages: Event = {**MESSAGES, "max_tokens": 400, "tools": [tool]}
    with (
        live_server(engine, reasoning_parser="qwen3", tool_call_parser="hermes") as server,
        httpx.Client(base_url=server.base, timeout=20) as client,
    ):
        whole = check_every_cut(client, path, responses if path == "responses" else messages)
    if path == "responses":
        kinds = [item["type"] for item in whole[-1]["response"]["output"]]
        assert kinds == ["reasoning", "message", "function_call"]
    else:
        starts = [e["content_block"]["type"] for e in whole if e["type"] == "content_block_start"]
        assert starts == ["thinking", "text", "tool_use"]


def test_a_client_that_asks_for_token_ids_gets_them(http: httpx.Client) -> None:
    stream = ResumableEvents({**RESPONSES, "temperature": 0.0, "return_token_ids": True})
    events = sent_by_node(http, "responses", stream.request("r"))
    out = EventSplitter().push(b"".join(pass_on(stream, events)))
    ids = [json.loads(e.split(b"data: ")[1])["token_ids"] for e in out if b"dlcore.token_ids" in e]
    usage = json.loads(out[-1].split(b"data: ")[1])["response"]["usage"]
    assert sum(map(len, ids)) == usage["output_tokens"] > 3


@pytest.mark.parametrize("path", ["responses", "messages"])
def test_a_field_that_does_not_fit_is_refused_by_name(http: httpx.Client, path: str) -> None:
    body = RESPONSES if path == "responses" else MESSAGES
    for wrong in (
        {**body, "resume_token_ids": [[5]]},
        {**body, "stream": True, "resume_token_ids": [[5], [6]]},
        {**body, "stream": True, "resume_token_ids": [[10**8]]},
    ):
        reply = http.post(f"/v1/{path}", json=wrong)
        assert reply.status_code == 400
        assert "resume_token_ids" in reply.json()["error"]["message"]

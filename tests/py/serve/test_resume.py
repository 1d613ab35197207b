"""A stream cut anywhere and resumed on another server is the stream that was not cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from serve.fake_client import FakeEngine
from serve.live_server import live_server

from dlcore import AsyncLLM

ASK = [{"role": "user", "content": "What is 17 + 25? Explain."}]
CHAT: dict[str, Any] = {"messages": ASK, "max_tokens": 20}
TEXT: dict[str, Any] = {"prompt": "What is 17 + 25? Well,", "max_tokens": 20}
GREEDY = {"temperature": 0.0}
SEEDED = {"temperature": 1.0, "seed": 5, "ignore_eos": True}
PENALTIES = {
    "presence_penalty": 0.7,
    "frequency_penalty": 0.3,
    "repetition_penalty": 1.2,
    "min_tokens": 8,
    "bad_words": ["the answer", "is"],
}
RULE = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
JSON = {"type": "json_schema", "json_schema": {"name": "r", "schema": RULE}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat greedy": ("chat/completions", {**CHAT, **GREEDY}),
    "chat seeded, n=2": ("chat/completions", {**CHAT, **SEEDED, "n": 2, "min_tokens": 3}),
    "chat penalties": ("chat/completions", {**CHAT, **SEEDED, **PENALTIES}),
    "chat logprobs": ("chat/completions", {**CHAT, **GREEDY, "logprobs": True, "top_logprobs": 2}),
    "chat under a grammar": ("chat/completions", {**CHAT, **SEEDED, "response_format": JSON}),
    "text greedy": ("completions", {**TEXT, **GREEDY}),
    "text penalties, n=2": ("completions", {**TEXT, **SEEDED, **PENALTIES, "n": 2}),
    "text, two prompts": ("completions", {**TEXT, **SEEDED, "prompt": ["One, two,", "Four and"]}),
    "text echo, logprobs": ("completions", {**TEXT, **SEEDED, "echo": True, "logprobs": 1}),
}


@dataclass
class Choice:
    """What a client has of one choice."""

    role: str | None = None
    pieces: dict[str, str] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    tokens: list[tuple[str, float]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    end: tuple[Any, Any] | None = None

    def add(self, choice: dict[str, Any]) -> None:
        said = choice.get("delta") or {"text": choice.get("text")}
        self.role = said.get("role", self.role)  # said again where nothing followed it
        for name in ("content", "reasoning_content", "text"):
            if said.get(name):
                self.pieces[name] = self.pieces.get(name, "") + said[name]
        self.token_ids += choice.get("token_ids") or []
        self._add_logprobs(choice.get("logprobs") or {})
        if choice.get("finish_reason"):
            self.end = (choice["finish_reason"], choice.get("stop_reason"))

    def _add_logprobs(self, found: dict[str, Any]) -> None:
        for entry in found.get("content") or []:
            self.tokens.append((entry["token"], round(entry["logprob"], 2)))
        for token, value in zip(
            found.get("tokens", []), found.get("token_logprobs", []), strict=True
        ):
            self.tokens.append((token, round(value or 0.0, 2)))
        self.offsets += found.get("text_offset", [])


@dataclass
class Answer:
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: tuple[int, int] | None = None

    def add(self, event: dict[str, Any]) -> None:
        for choice in event["choices"]:
            self.choices.setdefault(choice["index"], Choice()).add(choice)
        if event.get("usage"):
            usage = event["usage"]
            self.usage = (usage["prompt_tokens"], usage["completion_tokens"])

    def resume(self, count: int) -> list[list[int] | None]:
        found = [self.choices.get(i, Choice()) for i in range(count)]
        return [None if choice.end else choice.token_ids for choice in found]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    engine: Any = AsyncLLM(num_kv_blocks=512, max_num_seqs=8)
    with live_server(engine) as server, httpx.Client(base_url=server.base, timeout=60) as client:
        yield client
        server.finish(engine.close())


def events_of(http: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    options = {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    reply = http.post(f"/v1/{path}", json={**body, **options})
    assert reply.status_code == 200, reply.text
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def answer_of(events: list[dict[str, Any]]) -> Answer:
    answer = Answer()
    for event in events:
        answer.add(event)
    return answer


def cuts_of(events: list[dict[str, Any]], num_choices: int) -> list[Answer]:
    """What a client has of an unfinished answer after each event that closes an output: these
    carry its token ids."""
    parts = [
        answer_of(events[:end])
        for end, event in enumerate(events, start=1)
        if any(choice.get("token_ids") for choice in event["choices"])
    ]
    return [part for part in parts if any(ids is not None for ids in part.resume(num_choices))]


def check_every_cut(http: httpx.Client, path: str, body: dict[str, Any]) -> Answer:
    """The law. On a busy machine few outputs carry many tokens: then it is asked again."""
    for _ in range(100):
        events = events_of(http, path, body)
        whole = answer_of(events)
        cuts = cuts_of(events, len(whole.choices))
        if len(cuts) >= 3:
            break
    assert len(cuts) >= 3
    for part in cuts:
        resume = part.resume(len(whole.choices))
        finished = sum(len(whole.choices[i].token_ids) for i, r in enumerate(resume) if r is None)
        for event_after in events_of(http, path, {**body, "resume_token_ids": resume}):
            part.add(event_after)
        assert part.usage is not None
        part.usage = (part.usage[0], part.usage[1] + finished)
        assert part == whole, f"cut after {resume}"
    return whole


@pytest.mark.parametrize("name", CASES)
def test_a_cut_stream_goes_on_as_if_it_were_whole(http: httpx.Client, name: str) -> None:
    check_every_cut(http, *CASES[name])


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_stop_string_across_the_cut_is_found(http: httpx.Client, path: str) -> None:
    body = {**(CHAT if path.startswith("chat") else TEXT), **SEEDED, "max_tokens": 40}
    whole = answer_of(events_of(http, path, body)).choices[0]
    text = whole.pieces.get("content") or whole.pieces["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 7]
    stopped = check_every_cut(http, path, {**body, "stop": [stop, "never said"]})
    assert stopped.choices[0].end == ("stop", stop)


def test_a_stream_lost_before_its_usage_gets_just_that(http: httpx.Client) -> None:
    (event,) = events_of(http, "completions", {**TEXT, "resume_token_ids": [None]})
    assert event["choices"] == []
    assert event["usage"]["completion_tokens"] == 0


def test_a_field_that_does_not_fit_is_refused_by_name(http: httpx.Client) -> None:
    stream = {**TEXT, "stream": True}
    for body in (
        {**TEXT, "resume_token_ids": [[5]]},
        {**stream, "resume_token_ids": [[5], [6]]},
        {**stream, "resume_token_ids": [[10**8]]},
        {**stream, "resume_token_ids": [[5] * 20]},
    ):
        reply = http.post("/v1/completions", json=body)
        assert reply.status_code == 400
        assert "resume_token_ids" in reply.json()["error"]["message"]


def test_reasoning_and_tool_parsers_go_on_from_the_cut() -> None:
    """The parser has read what came before: text after the cut is not taken for a beginning."""
    script = "<think>\nLet me see.\n</think>\n\nIt is fine."
    engine = FakeEngine(reply=script)
    with (
        live_server(engine, reasoning_parser="qwen3") as server,
        httpx.Client(base_url=server.base, timeout=20) as client,
    ):
        whole = check_every_cut(client, "chat/completions", {"messages": ASK, "max_tokens": 200})
    assert "Let me see." in whole.choices[0].pieces["reasoning_content"]
    assert whole.choices[0].pieces["content"] == "It is fine."

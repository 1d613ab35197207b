"""Tool calls, reasoning and structured output on /v1/chat/completions, with the openai client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from serve.live_server import LiveServer, live_server
from serve.scripted import CALLS, PLAIN, SAID, THOUGHT, WEATHER, scripted_engine

TOOLS = [{"type": "function", "function": WEATHER}]
ASK = [{"role": "user", "content": "weather?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(scripted_engine(), tool_call_parser="hermes") as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)


def _streamed(client: openai.OpenAI, **options: object) -> tuple[dict[str, object], list[str]]:
    """The message a stream adds up to, without ids, and its finish reasons."""
    message: dict[str, object] = {"content": "", "reasoning": "", "calls": []}
    calls: list[dict[str, str]] = []
    reasons = []
    for chunk in client.chat.completions.create(stream=True, **options):  # type: ignore[call-overload]
        for choice in chunk.choices:
            delta = choice.delta
            message["content"] += delta.content or ""
            message["reasoning"] += getattr(delta, "reasoning_content", None) or ""
            for call in delta.tool_calls or []:
                if call.index == len(calls):
                    assert call.id
                    calls.append({"name": call.function.name, "arguments": ""})
                calls[call.index]["arguments"] += call.function.arguments or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    message["calls"] = [(c["name"], json.loads(c["arguments"])) for c in calls]
    return message, reasons


def _whole(client: openai.OpenAI, **options: object) -> tuple[dict[str, object], list[str]]:
    choice = client.chat.completions.create(**options).choices[0]  # type: ignore[call-overload]
    message = choice.message
    calls = [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or []]
    reasoning = getattr(message, "reasoning_content", None) or ""
    whole = {"content": message.content or "", "reasoning": reasoning, "calls": calls}
    return whole, [choice.finish_reason]


@pytest.mark.parametrize(
    ("options", "content", "reasoning", "calls", "reason"),
    [
        ({"tools": TOOLS}, SAID, THOUGHT, CALLS, "tool_calls"),
        ({"tools": TOOLS, "parallel_tool_calls": False}, SAID, THOUGHT, CALLS[:1], "tool_calls"),
        ({"tools": TOOLS, "tool_choice": "none"}, PLAIN, THOUGHT, [], "stop"),
        ({"tools": TOOLS, "tool_choice": "required"}, "", "", CALLS, "tool_calls"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function",
                                             "function": {"name": "get_weather"}}},
            "", "", CALLS[:1], "tool_calls",
        ),
        ({}, PLAIN, THOUGHT, [], "stop"),
        ({"reasoning_effort": "none"}, PLAIN, "", [], "stop"),
        ({"extra_body": {"include_reasoning": False}}, PLAIN, "", [], "stop"),
    ],
)  # fmt: skip
def test_calls_reasoning_and_content_are_told_apart_and_streamed_alike(
    client: openai.OpenAI,
    options: dict[str, object],
    content: str,
    reasoning: str,
    calls: list[object],
    reason: str,
) -> None:
    whole = _whole(client, model="fake", messages=ASK, **options)
    assert whole == ({"content": content, "reasoning": reasoning, "calls": calls}, [reason])
    assert _streamed(client, model="fake", messages=ASK, **options) == whole


def test_reasoning_tokens_are_counted(client: openai.OpenAI) -> None:
    usage = client.chat.completions.create(model="fake", messages=ASK).usage
    assert usage.completion_tokens_details.reasoning_tokens == len(THOUGHT)


def test_a_forced_call_constrains_the_engine(client: openai.OpenAI, server: LiveServer) -> None:
    client.chat.completions.create(
        model="fake", messages=ASK, tools=TOOLS, tool_choice="required", parallel_tool_calls=False
    )
    schema = server.engine.seen[-1][1].structured_outputs.json_schema
    assert schema["maxItems"] == 1
    assert schema["items"]["anyOf"][0]["properties"]["parameters"] == WEATHER["parameters"]


def test_a_constraint_leaves_the_reasoning_free(client: openai.OpenAI, server: LiveServer) -> None:
    client.chat.completions.create(
        model="fake", messages=ASK, response_format={"type": "json_object"}
    )
    rule = server.engine.seen[-1][1].structured_outputs
    assert rule.reasoning is not None
    assert not rule.reasoning.is_open
    assert rule.param == "response_format"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_schema",
                                 "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"json_schema": {"type": "object"}},
        ),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ("a", "b")}),
        ({"structured_outputs": {"grammar": "root ::= 'a'"}}, {"grammar": "root ::= 'a'"}),
        ({"structured_outputs": {"json": {"type": "string"}}}, {"json_schema": {"type": "string"}}),
    ],
)  # fmt: skip
def test_a_form_reaches_the_engine(
    server: LiveServer, http: httpx.Client, field: dict[str, object], expected: dict[str, object]
) -> None:
    for path, prompt in (("/v1/chat/completions", {"messages": ASK}),
                         ("/v1/completions", {"prompt": "a"})):  # fmt: skip
        assert http.post(path, json={**prompt, **field}).status_code == 200
        constraint = server.engine.seen[-1][1].structured_outputs
        for name, value in expected.items():
            assert getattr(constraint, name) == value


def test_the_parse_helper_gives_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake",
        messages=ASK,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "w", "schema": {"type": "object"}},
        },
    )
    assert json.loads(answer.choices[0].message.content)["city"] == "Paris"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tool_choice.function.name"),
        ({"tools": TOOLS + TOOLS}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
         "structured_outputs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "structural_tag"}}, "response_format"),
    ],
)  # fmt: skip
def test_contradictions_are_named(
    http: httpx.Client, fields: dict[str, object], param: str
) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": ASK, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param

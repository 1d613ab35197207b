"""Structured output over HTTP with the real engine and the bundled model."""

from __future__ import annotations

import json
from collections.abc import Iterator

import jsonschema_rs
import openai
import pytest
from serve.live_server import LiveServer, live_server

from dlcore.async_llm import AsyncLLM

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "Who are you?"}]
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": PERSON}}
    for name in ("add_person", "find_person")
]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    engine = AsyncLLM(device="cpu", dtype="float32", max_model_len=1024, num_kv_blocks=1024)
    with live_server(engine) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)


def test_a_json_schema_is_kept(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="",
        messages=ASK,
        temperature=1.5,
        seed=3,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON},
        },
    )
    jsonschema_rs.validate(PERSON, json.loads(answer.choices[0].message.content or ""))
    assert answer.choices[0].finish_reason == "stop"


def test_vllm_style_rules_are_kept(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="", prompt="x", extra_body={"structured_outputs": {"choice": ["left", "right"]}}
    )
    assert answer.choices[0].text in ("left", "right")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", "find_person"])
def test_forced_calls_are_valid(client: openai.OpenAI, choice: str, stream: bool) -> None:
    named = {"type": "function", "function": {"name": choice}}
    options = {
        "model": "", "messages": ASK, "tools": TOOLS, "temperature": 1.2, "seed": 5,
        "max_tokens": 300, "parallel_tool_calls": False,
        "tool_choice": choice if choice == "required" else named,
    }  # fmt: skip
    if stream:
        name, arguments, reason = "", "", None
        for chunk in client.chat.completions.create(stream=True, **options):  # type: ignore[call-overload]
            for call in chunk.choices[0].delta.tool_calls or []:
                name += call.function.name or ""
                arguments += call.function.arguments or ""
            reason = chunk.choices[0].finish_reason or reason
    else:
        whole = client.chat.completions.create(**options).choices[0]  # type: ignore[call-overload]
        (call,) = whole.message.tool_calls
        name, arguments, reason = call.function.name, call.function.arguments, whole.finish_reason
    assert name in ("add_person", "find_person")
    if choice != "required":
        assert name == choice
    jsonschema_rs.validate(PERSON, json.loads(arguments))
    assert reason == "tool_calls"


def test_the_bundled_model_calls_a_tool_by_itself(client: openai.OpenAI) -> None:
    function = {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    }
    answer = client.chat.completions.create(
        model="",
        messages=[{"role": "user", "content": "What's the weather in Paris?"}],
        tools=[{"type": "function", "function": function}],
        temperature=0,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Paris"},
    )


@pytest.mark.parametrize(
    ("field", "given"),
    [
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}},
        ),
        ("structured_outputs", {"regex": "(a"}),
        ("structured_outputs", {"grammar": "root ::= missing"}),
    ],
)
def test_a_rule_that_cannot_be_compiled_is_a_400(
    client: openai.OpenAI, field: str, given: dict[str, object]
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="", messages=ASK, extra_body={field: given})
    assert error.value.param == field
    assert client.chat.completions.create(model="", messages=ASK, max_tokens=4).choices

"""/v1/messages with the official client."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import httpx
import pytest
from serve.live_server import LiveServer, live_server
from serve.scripted import CALLS, PLAIN, SAID, THOUGHT, WEATHER, scripted_engine

TOOLS = [{"name": "get_weather", "description": "d", "input_schema": WEATHER["parameters"]}]
ASK = [{"role": "user", "content": "weather?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(scripted_engine(), tool_call_parser="hermes", api_key=("k",)) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.base, api_key="k", max_retries=0)


def test_a_message_has_thinking_text_and_usage(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="fake", max_tokens=500, messages=ASK, system="be brief")
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking == THOUGHT
    assert answer.content[1].text == PLAIN
    assert answer.stop_reason == "end_turn"
    assert answer.usage.cache_read_input_tokens == 4
    assert answer.usage.output_tokens > len(PLAIN)


def test_thinking_can_be_turned_off(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model="fake", max_tokens=500, messages=ASK, thinking={"type": "disabled"}
    )
    assert [block.type for block in answer.content] == ["text"]


def test_a_stream_adds_up_to_the_plain_message(client: anthropic.Anthropic) -> None:
    options = {"model": "fake", "max_tokens": 900, "messages": ASK, "tools": TOOLS}
    with client.messages.stream(**options) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    whole = client.messages.create(**options)
    assert text == SAID
    assert [b.type for b in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [(b.name, b.input) for b in whole.content[2:]] == CALLS
    assert whole.stop_reason == streamed.stop_reason == "tool_use"

    def plain(message: anthropic.types.Message) -> list[dict[str, object]]:
        hidden = {"id", "parsed_output"}
        return [
            {k: v for k, v in block.model_dump().items() if k not in hidden and v is not None}
            for block in message.content
        ]

    assert plain(streamed) == plain(whole)
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def test_the_events_come_in_the_documented_order(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(model="fake", max_tokens=500, messages=ASK, stream=True))
    kinds = [event.type for event in events if event.type != "ping"]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    starts = [e.index for e in events if e.type == "content_block_start"]
    stops = [e.index for e in events if e.type == "content_block_stop"]
    assert starts == stops == [0, 1]


def test_tool_results_go_back(client: anthropic.Anthropic, server: LiveServer) -> None:
    first = client.messages.create(model="fake", max_tokens=900, messages=ASK, tools=TOOLS)
    uses = [b for b in first.content if b.type == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sun"}]}
        for use in uses
    ]
    messages = [*ASK, {"role": "assistant", "content": first.content},
                {"role": "user", "content": results}]  # fmt: skip
    answer = client.messages.create(model="fake", max_tokens=500, messages=messages, tools=TOOLS)
    assert answer.content[-1].text == PLAIN
    prompt = server.engine.tokenizer.decode(server.engine.seen[-1][0], skip_special_tokens=False)
    assert prompt.count("<|im_start|>tool\nsun") == 2


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_can_be_forced(client: anthropic.Anthropic, choice: dict[str, str]) -> None:
    answer = client.messages.create(
        model="fake", max_tokens=900, messages=ASK, tools=TOOLS, tool_choice=choice
    )
    assert {b.type for b in answer.content} == {"tool_use"}
    assert answer.stop_reason == "tool_use"


def test_stop_sequences_and_length_are_told_apart(client: anthropic.Anthropic) -> None:
    off = {"type": "disabled"}
    stopped = client.messages.create(
        model="fake", max_tokens=500, messages=ASK, stop_sequences=["sunny"], thinking=off
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "sunny")
    assert stopped.content[0].text == "It is "
    cut = client.messages.create(model="fake", max_tokens=5, messages=ASK, thinking=off)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 5)


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="fake", messages=ASK)
    used = client.messages.create(model="fake", max_tokens=500, messages=ASK).usage
    assert counted.input_tokens == used.input_tokens + used.cache_read_input_tokens
    with_tools = client.messages.count_tokens(model="fake", messages=ASK, tools=TOOLS)
    assert with_tools.input_tokens > counted.input_tokens


def test_errors_have_the_shape_the_client_reads(
    client: anthropic.Anthropic, server: LiveServer
) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="other", max_tokens=5, messages=ASK)
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="fake", max_tokens=0, messages=ASK)
    wrong_key = anthropic.Anthropic(base_url=server.base, api_key="x", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        wrong_key.messages.create(model="fake", max_tokens=5, messages=ASK)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image", "source": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "content": "x"}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "x"}]},
        {"role": "robot", "content": "x"},
        {"role": "user", "content": None},
    ],
)
def test_a_wrong_block_is_a_400(server: LiveServer, message: dict[str, object]) -> None:
    body = {"model": "fake", "max_tokens": 5, "messages": [message]}
    answer = httpx.post(server.base + "/v1/messages", json=body, headers={"x-api-key": "k"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"] == "error"

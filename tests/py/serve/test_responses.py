"""/v1/responses with the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from serve.live_server import LiveServer, live_server, wait_until
from serve.scripted import CALLS, PLAIN, SAID, THOUGHT, WEATHER, scripted_engine

TOOLS = [{"type": "function", "strict": False, **WEATHER}]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(scripted_engine(), tool_call_parser="hermes") as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)


def test_a_response_has_reasoning_text_and_usage(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="fake", input="hello", instructions="be kind")
    assert answer.status == "completed"
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].content[0].text == THOUGHT
    assert answer.output_text == PLAIN
    assert answer.usage.output_tokens_details.reasoning_tokens == len(THOUGHT)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.instructions == "be kind"


def test_a_stream_ends_with_what_its_events_added_up_to(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake", input="weather", tools=TOOLS) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[1].type == "response.in_progress"
    assert events[-1].type == "response.completed"
    assert [item.type for item in final.output] == [
        "reasoning", "message", "function_call", "function_call"
    ]  # fmt: skip
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == final.output_text == SAID
    thought = "".join(e.delta for e in events if e.type == "response.reasoning_text.delta")
    assert thought == THOUGHT
    calls = [(i.name, json.loads(i.arguments)) for i in final.output if i.type == "function_call"]
    assert calls == CALLS
    whole = client.responses.create(model="fake", input="weather", tools=TOOLS)
    drop = {"id", "call_id"}
    strip = [{k: v for k, v in i.model_dump().items() if k not in drop and v is not None
              and k != "parsed_arguments"} for i in final.output]  # fmt: skip
    plain = [
        {k: v for k, v in i.model_dump().items() if k not in drop and v is not None}
        for i in whole.output
    ]
    for item in strip:
        for part in item.get("content") or []:
            part.pop("parsed", None)
    assert strip == plain


def test_the_conversation_goes_on_from_a_previous_response(
    client: openai.OpenAI, server: LiveServer
) -> None:
    first = client.responses.create(model="fake", input="weather?", tools=TOOLS)
    call = next(item for item in first.output if item.type == "function_call")
    second = client.responses.create(
        model="fake",
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sun"}],
        tools=TOOLS,
    )
    assert second.output_text == PLAIN
    prompt = server.engine.tokenizer.decode(server.engine.seen[-1][0], skip_special_tokens=False)
    assert prompt.index("weather?") < prompt.index(SAID) < prompt.index("<|im_start|>tool\nsun")
    assert second.previous_response_id == first.id


def test_items_can_be_sent_back_instead(client: openai.OpenAI, server: LiveServer) -> None:
    first = client.responses.create(model="fake", input="weather?", tools=TOOLS)
    items = [{"role": "user", "content": "weather?"}]
    items += [item.model_dump(exclude_none=True) for item in first.output]
    items += [{"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "x"}]
    second = client.responses.create(model="fake", input=items, tools=TOOLS)
    assert second.output_text == PLAIN
    prompt = server.engine.tokenizer.decode(server.engine.seen[-1][0], skip_special_tokens=False)
    assert prompt.count("<|im_start|>assistant") == 2


def test_a_response_can_be_retrieved_and_deleted(client: openai.OpenAI) -> None:
    made = client.responses.create(model="fake", input="hello", metadata={"k": "v"})
    assert client.responses.retrieve(made.id).output_text == PLAIN
    assert client.responses.retrieve(made.id).metadata == {"k": "v"}
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    unstored = client.responses.create(model="fake", input="hello", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_the_length_limit_makes_it_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="fake", input="hello", max_output_tokens=60)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    with client.responses.stream(model="fake", input="hello", max_output_tokens=60) as stream:
        assert list(stream)[-1].type == "response.incomplete"


def test_a_schema_is_passed_to_the_engine(client: openai.OpenAI, server: LiveServer) -> None:
    form = {"type": "json_schema", "name": "w", "schema": {"type": "object"}, "strict": True}
    answer = client.responses.create(model="fake", input="hello", text={"format": form})
    assert json.loads(answer.output_text)["city"] == "Paris"
    assert server.engine.seen[-1][1].structured_outputs.json_schema == {"type": "object"}


def test_logprobs_come_with_the_text(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="fake",
        input="hello",
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        reasoning={"effort": "none"},
    )
    logprobs = answer.output[0].content[0].logprobs
    assert len(logprobs) == len(PLAIN)
    assert len(logprobs[0].top_logprobs) == 2


def test_a_background_response_runs_on_and_can_be_cancelled() -> None:
    with live_server(scripted_engine(delay=0.05)) as slow:
        client = openai.OpenAI(base_url=f"{slow.base}/v1", api_key="none", max_retries=0)
        made = client.responses.create(model="fake", input="hello", background=True)
        assert made.status == "queued"
        assert wait_until(lambda: client.responses.retrieve(made.id).status == "completed")
        assert client.responses.retrieve(made.id).output_text == PLAIN
        second = client.responses.create(model="fake", input="hello", background=True)
        assert client.responses.cancel(second.id).status == "cancelled"
        assert slow.wait_idle(5)
        assert client.responses.retrieve(second.id).status == "cancelled"
        with pytest.raises(openai.BadRequestError):
            client.responses.cancel(client.responses.create(model="fake", input="x").id)


def test_the_store_is_bounded_and_private() -> None:
    with live_server(scripted_engine(), max_stored_responses=3, api_key=("a", "b")) as server:
        ours = openai.OpenAI(base_url=f"{server.base}/v1", api_key="a", max_retries=0)
        theirs = openai.OpenAI(base_url=f"{server.base}/v1", api_key="b", max_retries=0)
        made = [ours.responses.create(model="fake", input="hello").id for _ in range(5)]
        with pytest.raises(openai.NotFoundError):
            ours.responses.retrieve(made[0])
        assert ours.responses.retrieve(made[-1]).id == made[-1]
        with pytest.raises(openai.NotFoundError):
            theirs.responses.retrieve(made[-1])
        with pytest.raises(openai.NotFoundError):
            theirs.responses.create(model="fake", input="x", previous_response_id=made[-1])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "message", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "dance"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0]"),
        ({"input": "x", "previous_response_id": "resp_none"}, "previous_response_id"),
        ({"input": "x", "background": True, "stream": True}, "stream"),
        ({"input": "x", "background": True, "store": False}, "store"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": "x" * 5000}, "input"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(http: httpx.Client, body: dict[str, object], param: str) -> None:
    answer = http.post("/v1/responses", json=body)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == param

"""/v1/chat/completions through the official client, and its rules through plain HTTP."""

from __future__ import annotations

import httpx
import openai
import pytest
from serve.fake_client import DEFAULT_REPLY
from serve.live_server import LiveServer

REPLY = DEFAULT_REPLY * 8
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)


def test_an_answer_has_text_usage_and_finish_reason(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == REPLY
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(REPLY)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(REPLY)
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


def test_a_stream_adds_up_to_the_plain_answer(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake",
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == REPLY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert len({c.id for c in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(REPLY)
    assert all(c.usage is None for c in chunks[:-1])


def test_max_completion_tokens_ends_with_length(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HELLO, max_completion_tokens=10)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 10


def test_n_gives_n_choices_streaming_and_not(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HELLO, n=3)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="fake", messages=HELLO, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [c.message.content for c in answer.choices]


def test_a_stop_string_ends_the_text_and_is_named(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HELLO, stop=["forty"])
    assert answer.choices[0].message.content == "The answer to your question is "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == "forty"


def test_logprobs_are_the_same_streamed(client: openai.OpenAI) -> None:
    options = {
        "model": "fake",
        "messages": HELLO,
        "logprobs": True,
        "top_logprobs": 2,
        "max_tokens": 30,
    }
    answer = client.chat.completions.create(**options)
    whole = answer.choices[0].logprobs.content
    assert len(whole) == 30
    assert whole[0].token == "T"
    assert whole[0].bytes == [84]
    assert len(whole[0].top_logprobs) == 2
    streamed = [
        entry
        for chunk in client.chat.completions.create(**options, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [e.model_dump() for e in streamed] == [e.model_dump() for e in whole]


def test_content_parts_null_content_and_tool_turns_are_taken(
    client: openai.OpenAI, server: LiveServer
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    client.chat.completions.create(
        model="fake",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "first"},
                                         {"type": "text", "text": "second"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "result"},
        ],
    )  # fmt: skip
    prompt = server.engine.tokenizer.decode(server.engine.seen[-1][0], skip_special_tokens=False)
    assert "<|im_start|>system\nbe brief<|im_end|>" in prompt
    assert "first\nsecond" in prompt
    assert '"arguments": {"a": 1}' in prompt
    assert "<|im_start|>tool\nresult" in prompt


def test_continue_final_message_leaves_the_turn_open(
    http: httpx.Client, server: LiveServer
) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Sure, I"}]
    body = {"messages": messages, "continue_final_message": True}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    prompt = server.engine.tokenizer.decode(server.engine.seen[-1][0], skip_special_tokens=False)
    assert prompt.endswith("Sure, I")


def test_reasoning_effort_none_turns_thinking_off(http: httpx.Client, server: LiveServer) -> None:
    body = {"messages": HELLO, "reasoning_effort": "none"}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    prompt = server.engine.tokenizer.decode(server.engine.seen[-1][0])
    assert prompt.endswith("<think></think>")


def test_every_sampling_field_reaches_the_engine(http: httpx.Client, server: LiveServer) -> None:
    fields = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 11, "min_tokens": 2,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1,
        "stop_token_ids": [5], "include_stop_str_in_output": True, "ignore_eos": True,
        "allowed_token_ids": [1, 2], "bad_words": ["x"], "skip_special_tokens": False,
        "max_tokens": 12,
    }  # fmt: skip
    body = {"messages": HELLO, **fields, "logit_bias": {"7": -3.5}, "prompt_logprobs": 1}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    params = server.engine.seen[-1][1]
    for name, value in fields.items():
        assert getattr(params, name) == value, name
    assert params.logit_bias == {7: -3.5}
    assert params.prompt_logprobs == 1
    assert answer.json()["prompt_logprobs"][0] is None
    assert len(answer.json()["prompt_logprobs"]) == answer.json()["usage"]["prompt_tokens"]


def test_return_token_ids(http: httpx.Client) -> None:
    body = {"messages": HELLO, "return_token_ids": True, "max_tokens": 5}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert len(answer["choices"][0]["token_ids"]) == 5
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]

"""/v1/completions: prompts in every form, echo, the legacy logprobs."""

from __future__ import annotations

import httpx
import openai
import pytest
from serve.fake_client import DEFAULT_REPLY, FakeEngine
from serve.live_server import LiveServer, live_server

REPLY = DEFAULT_REPLY * 8


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [("hi", 1), ([72, 73], 1), (["a", "b"], 2), ([[72], [73, 74], [75]], 3)],
)
def test_a_prompt_is_text_or_ids_or_a_list_of_them(
    client: openai.OpenAI, prompt: object, choices: int
) -> None:
    answer = client.completions.create(model="fake", prompt=prompt, max_tokens=8)
    assert [c.index for c in answer.choices] == list(range(choices))
    assert all(c.text == REPLY[:8] and c.finish_reason == "length" for c in answer.choices)
    assert answer.usage.completion_tokens == 8 * choices


def test_a_stream_adds_up_to_the_plain_answer(client: openai.OpenAI) -> None:
    options = {"model": "fake", "prompt": ["a", "bc"], "n": 2, "max_tokens": 40}
    whole = client.completions.create(**options)
    texts = [""] * 4
    usage = None
    for chunk in client.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens == 160
    assert usage.prompt_tokens == whole.usage.prompt_tokens


def test_echo_puts_the_prompt_first_with_its_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="fake", prompt="hello", echo=True, logprobs=2, max_tokens=4
    )
    choice = answer.choices[0]
    assert choice.text == "hello" + REPLY[:4]
    assert choice.logprobs.tokens == list("hello" + REPLY[:4])
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.text_offset == list(range(9))
    assert len(choice.logprobs.top_logprobs[3]) == 2


def test_echo_with_no_new_tokens_scores_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="fake", prompt="hello", echo=True, logprobs=1, max_tokens=0
    )
    assert answer.choices[0].text == "hello"
    assert len(answer.choices[0].logprobs.tokens) == 5


def test_echo_and_logprobs_are_the_same_streamed(client: openai.OpenAI) -> None:
    options = {"model": "fake", "prompt": "hey", "echo": True, "logprobs": 1, "max_tokens": 12}
    whole = client.completions.create(**options).choices[0]
    parts = [c.choices[0] for c in client.completions.create(**options, stream=True) if c.choices]
    assert "".join(p.text for p in parts) == whole.text
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        joined = [v for p in parts if p.logprobs for v in getattr(p.logprobs, name)]
        assert joined == getattr(whole.logprobs, name)


def test_suffix_is_refused_clearly(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"prompt": "a", "suffix": "b"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "suffix"


def test_truncate_prompt_tokens_keeps_the_last(http: httpx.Client, server: LiveServer) -> None:
    body = {"prompt": "abcdef", "truncate_prompt_tokens": 2, "max_tokens": 1}
    assert http.post("/v1/completions", json=body).json()["usage"]["prompt_tokens"] == 2
    assert server.engine.tokenizer.decode(server.engine.seen[-1][0]) == "ef"


def test_a_model_without_a_tokenizer_serves_token_ids() -> None:
    with live_server(FakeEngine(tokens_only=True)) as server:
        ids = httpx.post(f"{server.base}/v1/completions", json={"prompt": [1, 2, 3]})
        assert ids.status_code == 200
        text = httpx.post(f"{server.base}/v1/completions", json={"prompt": "hi"})
        assert text.status_code == 400
        assert "token ids" in text.json()["error"]["message"]

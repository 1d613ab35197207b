"""/tokenize and /detokenize."""

from __future__ import annotations

import httpx
import pytest


def test_a_text_survives_the_round_trip(http: httpx.Client) -> None:
    text = "Zürich ☔ <|im_start|> 12"
    tokens = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == 4096
    answer = http.post("/detokenize", json={"tokens": tokens["tokens"]})
    assert answer.json()["prompt"] == text


def test_messages_are_tokenized_as_the_chat_endpoint_does(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "hello"}]
    count = http.post("/tokenize", json={"messages": messages}).json()["count"]
    usage = http.post("/v1/chat/completions", json={"messages": messages}).json()["usage"]
    assert count == usage["prompt_tokens"]


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": [{"role": "user"}]}])
def test_one_of_prompt_and_messages_is_needed(http: httpx.Client, body: object) -> None:
    assert http.post("/tokenize", json=body).status_code == 400


@pytest.mark.parametrize("token_id", [258, 2**31 - 1, 2**40, -1])
def test_an_unknown_id_is_a_400_that_names_the_field(http: httpx.Client, token_id: int) -> None:
    answer = http.post("/detokenize", json={"tokens": [5, token_id]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("tokens")
    assert http.post("/detokenize", json={"tokens": []}).json()["prompt"] == ""

"""Every mistake is a 4xx that names the field, and the server is healthy after it."""

from __future__ import annotations

import httpx
import pytest
from serve.fake_client import FakeEngine
from serve.live_server import LiveServer, live_server

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"

WRONG_FIELDS = [
    ("temperature", -1), ("temperature", "hot"), ("temperature", True), ("temperature", 1e300),
    ("top_p", 0), ("top_p", 1.5), ("top_k", -2), ("top_k", 0.5), ("min_p", 2), ("n", 0),
    ("n", 10**6), ("n", 10**30), ("seed", 2**64), ("seed", "x"), ("max_tokens", -1),
    ("max_tokens", 10**9), ("max_tokens", "many"), ("presence_penalty", 3),
    ("frequency_penalty", -3), ("repetition_penalty", 0), ("stop", ""), ("stop", [""]),
    ("stop", 5), ("stop", ["a"] * 1000), ("stop_token_ids", [-1]), ("stop_token_ids", "x"),
    ("logit_bias", {"a": 1}), ("logit_bias", {"999999": 1}), ("logit_bias", {"1": 1000}),
    ("logit_bias", [1]), ("allowed_token_ids", [10**9]), ("allowed_token_ids", [999]),
    ("allowed_token_ids", []), ("bad_words", [""]), ("min_tokens", -1), ("min_tokens", 100),
    ("stream", "yes"), ("stream_options", {"include_usage": True}), ("prompt_logprobs", 99),
    ("priority", "high"), ("cache_salt", 5), ("user", 5), ("ignore_eos", 1), ("model", 7),
    ("truncate_prompt_tokens", -5), ("truncate_prompt_tokens", 0), ("response_format", "json"),
    ("response_format", {"type": "xml"}),
]  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(("field", "value"), WRONG_FIELDS)
def test_a_wrong_field_is_a_400_that_names_it(
    http: httpx.Client, path: str, field: str, value: object
) -> None:
    base = {"messages": HELLO} if path == CHAT else {"prompt": "hello"}
    answer = http.post(path, json={**base, "max_tokens": 20, field: value})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].split("[")[0].split(".")[0] == field
    assert field in error["message"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "smell"}]}], "messages[0].content[0].type"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
            "messages[0].content[0]",
        ),
        (
            [{"role": "assistant", "content": None,
              "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)  # fmt: skip
def test_a_wrong_message_is_named(http: httpx.Client, messages: object, param: str) -> None:
    answer = http.post(CHAT, json={"messages": messages})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"{}", b'{"messages": NaN}', b'{"temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"\xff\xfe\x00", b"\x00" * 100,
        b"[" * 100_000, b'{"a":' * 50_000, b'{"prompt": "\xed\xa0\x80"}', b'{"prompt": []}',
        b'{"prompt": [[]]}', b'{"prompt": [1, "a"]}', b'{"prompt": [[1], 2]}',
        b'{"prompt": [99999]}', b'{"prompt": ""}', b'{"temperature": 1e999, "prompt": "a"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_malformed_body_is_a_400(http: httpx.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize("text", ["\x00", "a\u202eb", "👩‍👩‍👧", "\uffff", "é" * 100, "\U0010ffff"])
def test_odd_unicode_is_served(http: httpx.Client, text: str) -> None:
    answer = http.post(CHAT, json={"messages": [{"role": "user", "content": text}]})
    assert answer.status_code == 200


def test_a_prompt_beyond_the_context_is_a_400_with_the_numbers(http: httpx.Client) -> None:
    answer = http.post(TEXT, json={"prompt": [1] * 5000})
    assert answer.status_code == 400
    assert "5000" in answer.json()["error"]["message"]
    assert "4096" in answer.json()["error"]["message"]
    answer = http.post(TEXT, json={"prompt": [1] * 4000, "max_tokens": 97})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_tokens"
    assert http.post(TEXT, json={"prompt": [1] * 4000, "max_tokens": 96}).status_code == 200


@pytest.mark.parametrize("limit", [2**20, 2**25])
def test_a_10_mb_prompt_is_refused(limit: int) -> None:
    with live_server(max_body_bytes=limit) as server:
        body = {"messages": [{"role": "user", "content": "word " * 2_000_000}]}
        answer = httpx.post(server.base + CHAT, json=body, timeout=30)
        assert answer.status_code == (413 if limit < 10**7 else 400)
        assert not server.engine.seen
        assert httpx.get(server.base + "/health").status_code == 200


def test_a_body_without_a_length_is_bounded_too() -> None:
    with live_server(max_body_bytes=1000) as server:
        chunks = (b"x" * 100 for _ in range(1000))
        answer = httpx.post(server.base + CHAT, content=chunks)
        assert answer.status_code == 413


def test_unknown_fields_are_accepted(http: httpx.Client) -> None:
    body = {"messages": HELLO, "store": True, "metadata": {"a": "b"}, "frobnicate": [1, {"x": 2}]}
    assert http.post(CHAT, json=body).status_code == 200


def test_unknown_fields_are_logged_once(
    http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        http.post(CHAT, json={"messages": HELLO, "wibble": 1})
    assert sum("wibble" in r.message for r in caplog.records) == 1


def test_an_unknown_model_is_a_404(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"model": "gpt-9", "messages": HELLO})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_unknown_routes_and_methods_answer_in_json(http: httpx.Client) -> None:
    assert http.get("/nothing").status_code == 404
    assert http.get("/nothing").json()["error"]["message"]
    assert http.get(CHAT).status_code == 405
    assert http.get(CHAT).headers["allow"] == "POST"


def test_a_client_template_is_refused_by_default(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"messages": HELLO, "chat_template": "{{ 1 }}"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "chat_template"
    answer = http.post(CHAT, json={"messages": HELLO, "chat_template_kwargs": {"messages": []}})
    assert answer.status_code == 400


def test_a_full_queue_is_429_with_retry_after(server: LiveServer) -> None:
    with live_server(FakeEngine(delay=0.5, max_waiting=1)) as busy, httpx.Client() as client:
        body = {"prompt": "a", "stream": True}
        with client.stream("POST", busy.base + TEXT, json=body):
            answer = httpx.post(busy.base + TEXT, json={"prompt": "a"})
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            streamed = httpx.post(busy.base + TEXT, json=body)
            assert streamed.status_code == 429  # known before the stream began


def test_a_dead_engine_is_503_and_not_healthy() -> None:
    engine = FakeEngine()
    with live_server(engine) as server:
        engine.dead = True
        assert httpx.post(server.base + TEXT, json={"prompt": "a"}).status_code == 503
        assert httpx.get(server.base + "/health").status_code == 503
        assert httpx.get(server.base + "/ready").status_code == 503

"""Structured output where the front ends are processes of their own."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import httpx
import msgspec
import pytest

from dlcore.frontends.remote_rules import read_rule
from dlcore.sampling_params import ReasoningSpan, StructuredOutputs


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "dlcore", "serve", "--device", "cpu", "--frontends", "2"]
    with subprocess.Popen(
        [*command, "--port", str(port), "--no-access-log"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any("is ready" in line for line in process.stderr)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        assert process.wait(20) == 0


def ask(base: str, **fields: object) -> httpx.Response:
    body = {"prompt": "What is 17 + 25?", "max_tokens": 60, "temperature": 0.9, **fields}
    return httpx.post(f"{base}/v1/completions", json=body, timeout=60)


def test_rules_hold_and_free_requests_run_beside_them(base: str) -> None:
    rules = [{"structured_outputs": {"regex": "[a-z]{3}[0-9]{2}"}}, {}]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: ask(base, seed=i, **rules[i % 2]), range(16)))
    texts = [answer.json()["choices"][0]["text"] for answer in answers]
    assert all(re.fullmatch("[a-z]{3}[0-9]{2}", text) for text in texts[::2])
    assert not any(re.fullmatch("[a-z]{3}[0-9]{2}", text) for text in texts[1::2])


def test_a_bad_rule_is_a_400(base: str) -> None:
    answer = ask(base, structured_outputs={"regex": "(a"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "structured_outputs"
    assert ask(base).status_code == 200


@pytest.mark.parametrize(
    "rule",
    [
        StructuredOutputs(json_schema={"type": "object"}, param="response_format"),
        StructuredOutputs(choice=("a", "b"), reasoning=ReasoningSpan(is_open=True)),
    ],
)
def test_a_rule_survives_the_wire(rule: StructuredOutputs) -> None:
    assert read_rule(msgspec.msgpack.decode(msgspec.msgpack.encode(asdict(rule)))) == rule

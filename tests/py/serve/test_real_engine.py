"""The server over the real engine and the bundled model."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from click.testing import CliRunner
from serve.live_server import LiveServer, live_server, wait_until
from serve.test_lifecycle import storm

from dlcore import AsyncLLM
from dlcore.bundled_model import BUNDLED_MODEL_FOLDER
from dlcore.commands.top import top

CITY = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(AsyncLLM(device="cpu", num_kv_blocks=2048)) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)


def test_the_bundled_model_answers(client: openai.OpenAI) -> None:
    ask = {"messages": [{"role": "user", "content": "What is 3 + 4?"}], "temperature": 0}
    whole = client.chat.completions.create(model="dlcore-demo", **ask)
    assert "7" in whole.choices[0].message.content
    parts = client.chat.completions.create(model="dlcore-demo", stream=True, **ask)
    text = "".join(c.choices[0].delta.content or "" for c in parts if c.choices)
    assert text == whole.choices[0].message.content


def test_the_folders_generation_config_holds_for_what_a_request_leaves_open(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED_MODEL_FOLDER, folder)
    advice = {"do_sample": True, "temperature": 1.5, "top_k": 1, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(advice))
    body = {"prompt": "dlcore", "max_tokens": 20, "ignore_eos": True}

    def text(server: LiveServer, **more: object) -> str:
        answer = httpx.post(f"{server.base}/v1/completions", json={**body, **more}, timeout=60)
        return str(answer.json()["choices"][0]["text"])

    with live_server(AsyncLLM(str(folder), device="cpu", num_kv_blocks=256)) as server:
        best = text(server, temperature=0)
        assert {text(server) for _ in range(3)} == {best}  # top_k 1
        assert len({text(server, top_k=0, seed=seed) for seed in range(5)}) > 1


def test_top_shows_a_server_at_work(server: LiveServer) -> None:
    httpx.post(f"{server.base}/v1/completions", json={"prompt": "a", "max_tokens": 3})
    result = CliRunner().invoke(top, ["--url", server.base, "--interval", "0.1", "--count", "1"])
    assert result.exit_code == 0, result.output
    assert "running" in result.output
    assert "KV cache" in result.output


def test_a_schema_holds_and_a_bad_one_is_a_400(server: LiveServer) -> None:
    url = server.base + "/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
    schema = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
    answer = httpx.post(url, json={**body, "response_format": schema}, timeout=60)
    choice = answer.json()["choices"][0]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"])["sum"], int)
    bad = httpx.post(url, json={**body, "structured_outputs": {"regex": "("}}, timeout=60)
    assert bad.status_code == 400
    assert bad.json()["error"]["param"] == "structured_outputs"


def test_a_forced_call_is_a_call(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": CITY}}
    answer = client.chat.completions.create(
        model="dlcore-demo",
        messages=[{"role": "user", "content": "add"}],
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
        temperature=0,
    )
    calls = answer.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["add"]


def test_a_storm_of_cancels_leaves_no_sequence_and_no_block_behind(server: LiveServer) -> None:
    asyncio.run(storm(server.port, streams=1000, seed=3))
    engine = server.engine

    def quiet() -> bool:
        stats = engine.stats()
        return not (stats["num_running"] or stats["num_waiting"] or stats["num_referenced_blocks"])

    assert wait_until(quiet, 60), engine.stats()
    assert server.ctx.drain.in_flight == 0
    body = {"prompt": "a", "max_tokens": 2}
    assert httpx.post(server.base + "/v1/completions", json=body, timeout=30).status_code == 200

"""`dlcore router` and `dlcore up` as processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from dlcore import LLM, SamplingParams
from dlcore.control.child import Child, free_port, stop_all
from dlcore.control.local_system import answers

DLCORE = [sys.executable, "-m", "dlcore"]


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = str(owner.getsockname()[1])
        command = [*DLCORE, "router", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: port {port} is in use on 127.0.0.1: stop its owner or pass --port"
    ]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--backend", "nowhere"], "--backend"),
        (["--backend", "http://127.0.0.1:1=chief"], "--backend"),
        (["--policy", "random"], "--policy"),
        (["--discovery", "gossip"], "--discovery"),
        (["--max-attempts", "0"], "--max-attempts"),
        (["--backend-api-key-file", "/nowhere/key"], "--backend-api-key-file"),
    ],
)
def test_a_wrong_flag_is_named(flags: list[str], named: str) -> None:
    command = [*DLCORE, "router", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {named}: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--replicas", "0"], "--replicas"),
        (["--prefill", "1"], "--decode"),
        (["--decode", "1", "--replicas", "1"], "--prefill"),
    ],
)
def test_up_names_the_number_of_nodes_that_is_wrong(flags: list[str], named: str) -> None:
    command = [*DLCORE, "up", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {named}: ")


def children_of(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def states(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/backends", timeout=10) as reply:
        return [backend["state"] for backend in json.load(reply)["backends"]]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_up_serves_restarts_what_dies_and_leaves_nothing_behind(
    tmp_path: Path, end: signal.Signals
) -> None:
    port = free_port()
    options = ["--replicas", "2", "--port", str(port), "--log-dir", str(tmp_path / "logs")]
    node = ["--load-format", "null", "--num-kv-blocks", "64"]
    up = Child("up", [*DLCORE, "up", *options, *node], tmp_path / "up.log")
    up.start()
    try:
        assert wait_until(lambda: "is ready" in up.last_words()), up.last_words()
        first = set(children_of(up.pid))
        assert len(first) == 3
        assert wait_until(lambda: states(port) == ["up", "up"], 10)
        os.kill(max(first), signal.SIGKILL)
        assert wait_until(lambda: len(set(children_of(up.pid)) - first) == 1)
        assert wait_until(lambda: answers(f"http://127.0.0.1:{port}/ready"))
        started = first | set(children_of(up.pid))
        up.signal(end)
        assert wait_until(lambda: not up.alive, 40)
        assert wait_until(lambda: all(gone(pid) for pid in started), 20)
    finally:
        stop_all([up], 20)
    if end is signal.SIGINT:
        assert up.exit_code == 0


needs_ctrl = pytest.mark.skipif(
    shutil.which("redis-server") is None
    or not (Path(sys.executable).parent / "dlslime-ctrl").exists(),
    reason="needs redis-server and dlslime-ctrl",
)


@needs_ctrl
def test_up_with_ctrl_finds_its_nodes_by_itself(tmp_path: Path) -> None:
    port = free_port()
    options = ["--replicas", "1", "--ctrl", "--port", str(port), "--log-dir", str(tmp_path)]
    node = ["--load-format", "null", "--num-kv-blocks", "64", "--frontends", "2"]
    up = Child("up", [*DLCORE, "up", *options, *node], tmp_path / "up.log")
    up.start()
    try:
        assert wait_until(lambda: "is ready" in up.last_words()), up.last_words()
        assert wait_until(lambda: states(port) == ["up"], 10)
        started = children_of(up.pid)
        assert len(started) == 4  # Redis, dlslime-ctrl, the node, the router
        up.signal(signal.SIGTERM)
        assert wait_until(lambda: not up.alive, 40)
        assert all(gone(pid) for pid in started)
    finally:
        stop_all([up], 20)
    assert up.exit_code == 0


QUESTION = [{"role": "user", "content": "What is 3 + 4? Tell me how you found it, step by step."}]


@pytest.fixture(scope="module")
def answer_of_one_process() -> str:
    with LLM(device="cpu", num_kv_blocks=256) as llm:
        (out,) = llm.chat(QUESTION, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    return out.outputs[0].text


def chat(client: openai.OpenAI, stream: bool) -> tuple[str, int]:
    """The answer's text and its usage's cached tokens."""
    asked = {"model": "dlcore-demo", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    if not stream:
        whole = client.chat.completions.create(**asked)
        return whole.choices[0].message.content, whole.usage.prompt_tokens_details.cached_tokens
    usage = {"include_usage": True}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=usage))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    return text, chunks[-1].usage.prompt_tokens_details.cached_tokens


def roles(port: int, key: str) -> list[tuple[str, str]]:
    url = f"http://127.0.0.1:{port}/backends"
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return sorted((b["role"], b["state"]) for b in json.load(reply)["backends"])


@pytest.mark.parametrize("extra", [[], pytest.param(["--ctrl"], marks=needs_ctrl)], ids=str)
@pytest.mark.parametrize(("stream", "client_key"), [(False, None), (True, "the clients' key")])
def test_up_with_prefill_and_decode_nodes_moves_kv_and_answers_like_one_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer_of_one_process: str,
    extra: list[str],
    stream: bool,
    client_key: str | None,
) -> None:
    if client_key is not None:
        monkeypatch.setenv("DLCORE_API_KEY", client_key)
    shown = client_key or "none"
    port = free_port()
    options = ["--prefill", "1", "--decode", "1", "--port", str(port), "--log-dir", str(tmp_path)]
    node = ["--num-kv-blocks", "256", "--device", "cpu", "--no-enable-prefix-caching"]
    up = Child("up", [*DLCORE, "up", *options, *extra, *node], tmp_path / "up.log")
    up.start()
    try:
        assert wait_until(lambda: "is ready" in up.last_words()), up.last_words()
        wanted = [("decode", "up"), ("prefill", "up")]
        assert wait_until(lambda: roles(port, shown) == wanted, 20), roles(port, shown)
        key = tmp_path / "node-key"
        assert key.stat().st_mode & 0o777 == 0o600
        started = children_of(up.pid)
        lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in started]
        assert not any(key.read_text().strip() in line for line in lines)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=shown)
        text, cached = chat(client, stream)
        assert text == answer_of_one_process
        assert cached > 0  # with no prefix cache: KV that came from the prefill node
        up.signal(signal.SIGTERM)
        assert wait_until(lambda: not up.alive, 40)
        assert all(gone(pid) for pid in started)
        assert not key.exists()
    finally:
        stop_all([up], 20)
    assert up.exit_code == 0

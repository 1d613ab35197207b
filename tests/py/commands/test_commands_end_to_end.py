"""The commands as a user runs them: real processes, the bundled model."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dlcore.bundled_model import BUNDLED_MODEL_FOLDER

TIMEOUT_S = 90
COMMAND = [sys.executable, "-m", "dlcore"]
SMALL = ["--num-kv-blocks", "512", "--max-num-seqs", "8", "--device", "cpu"]


def dlcore(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args], input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of `dlcore serve`, which must end with code 0 when told to."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*COMMAND, "serve", "--port", str(port), *SMALL])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(10 * TIMEOUT_S):
        assert process.poll() is None, "the server ended"
        try:
            if httpx.get(f"{url}/health", timeout=1.0).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def test_chat_in_a_pipe_prints_only_the_answers() -> None:
    said = "What is 3 + 4?\n/reset\n\nWhat is 2 + 2?\n/exit\nnever asked\n"
    done = dlcore("chat", *SMALL, "--temperature", "0", stdin=said)
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert "7" in first
    assert "4" in second


def test_generate_answers_every_line_in_order(tmp_path: Path) -> None:
    rows = [
        {"prompt": "dlcore", "id": "a", "max_tokens": 3, "ignore_eos": True},
        {"messages": [{"role": "user", "content": "What is 3 + 4?"}]},
        {"prompt_token_ids": [5, 6], "n": 2, "max_tokens": 2, "ignore_eos": True},
        {"prompt_token_ids": [999_999]},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    done = dlcore("generate", str(source), "-o", str(target), "--temperature", "0", *SMALL)
    assert done.returncode == 1
    assert "1 of 4 prompts failed" in done.stderr
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [a["line"] for a in answers] == [1, 2, 3, 4]
    assert answers[0]["id"] == "a"
    assert answers[0]["usage"]["completion_tokens"] == 3
    assert "7" in answers[1]["text"]
    assert len(answers[2]["outputs"]) == 2
    assert "999999" in answers[3]["error"]


def test_bench_writes_figures_and_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    what = ("--load-format", "null", "--batch-sizes", "1,4", "--repeats", "1")
    where = ("--json", str(tmp_path / "row.json"), "--plots", str(tmp_path))
    done = dlcore("bench", *what, *where, *SMALL)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "row.json").read_text())
    assert [f["name"] for f in report["figures"]] == [
        "start", "tpot_b1", "tpot_b4", "ttft", "ttft_idle", "prefill", "mixed",
    ]  # fmt: skip
    for name in ("latency.png", "throughput.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_bench_measures_a_running_server(server: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    load = ("--concurrency", "1,3", "--requests", "6", "--input-len", "9", "--output-len", "5")
    done = dlcore("bench", "--url", server, *load, "--json", str(tmp_path / "r.json"))
    assert done.returncode == 0, done.stdout
    for row in json.loads((tmp_path / "r.json").read_text())["rows"]:
        assert (row["ok"], row["failed"], row["tokens"]) == (6, 0, 30)
        assert row["output_tokens_per_s"] > 0
        assert row["ttft_p50"] <= row["ttft_p99"]


def test_serve_answers_and_a_second_one_names_the_taken_port(server: str) -> None:
    body = {"messages": [{"role": "user", "content": "What is 3 + 4?"}], "temperature": 0}
    answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=TIMEOUT_S).json()
    assert "7" in answer["choices"][0]["message"]["content"]
    port = server.rpartition(":")[2]
    done = dlcore("serve", "--port", port)
    assert done.returncode == 1
    assert f"port {port} is in use" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["serve", "/no/such/folder", "--port", "0"], 2, "does not exist"),
        (["generate", "-", "--dtype", "int8"], 2, "int8"),
        (["generate", "-", "--num-kv-blocks", "100000000", "--block-size", "1"], 1, "memory"),
        (["generate", "-", "--max-model-len", "1000000"], 2, "--max-model-len"),
        (["chat", "--temperature", "nan"], 2, "temperature"),
        (["bench", "--url", "http://127.0.0.1:1"], 1, "no server answers"),
        (["bench", "--concurrency", "1,x"], 2, "1,8,64"),
    ],
)
def test_wrong_input_is_one_clear_line_and_an_exit_code(
    args: list[str], code: int, said: str
) -> None:
    done = dlcore(*args, stdin="hi\n")
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    for file in BUNDLED_MODEL_FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:5_000_000])
    done = dlcore("generate", "-", "--model", str(tmp_path), stdin="hi\n")
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr

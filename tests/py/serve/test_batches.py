"""/v1/files and /v1/batches with the official client; jobs survive the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from serve.fake_client import FakeEngine
from serve.live_server import LiveServer, live_server, wait_until

HERE = Path(__file__).parent


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    with live_server(FakeEngine(reply="fine."), data_dir=str(tmp_path)) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)


def _lines(count: int, prefix: str = "r", **body: object) -> bytes:
    rows = [
        {
            "custom_id": f"{prefix}{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": f"q{i}"}], **body},
        }
        for i in range(count)
    ]
    return b"\n".join(json.dumps(row).encode() for row in rows)


def _upload(client: openai.OpenAI, data: bytes) -> str:
    return client.files.create(file=("in.jsonl", data), purpose="batch").id


def _start(client: openai.OpenAI, file_id: str) -> str:
    return client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    ).id


def _final(client: openai.OpenAI, batch_id: str) -> openai.types.Batch:
    final = {"completed", "failed", "cancelled", "expired"}
    assert wait_until(lambda: client.batches.retrieve(batch_id).status in final, 20)
    return client.batches.retrieve(batch_id)


def test_a_file_is_kept_listed_given_back_and_deleted(client: openai.OpenAI) -> None:
    first = client.files.create(file=("a.txt", b"hello\n\x00"), purpose="user_data")
    second = _upload(client, b"{}")
    assert (first.filename, first.bytes, first.purpose) == ("a.txt", 7, "user_data")
    assert client.files.content(first.id).read() == b"hello\n\x00"
    assert {f.id for f in client.files.list()} == {first.id, second}
    assert [f.id for f in client.files.list(purpose="batch")] == [second]
    assert client.files.delete(first.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(first.id)


def test_a_batch_answers_every_line(client: openai.OpenAI) -> None:
    batch = _final(client, _start(client, _upload(client, _lines(40))))
    assert batch.status == "completed"
    assert batch.request_counts.completed == batch.request_counts.total == 40
    rows = [json.loads(x) for x in client.files.content(batch.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in rows] == [f"r{i}" for i in range(40)]
    answer = rows[0]["response"]
    assert answer["status_code"] == 200
    assert answer["body"]["choices"][0]["message"]["content"] == "fine."
    assert batch.id in [b.id for b in client.batches.list()]


def test_lines_that_fail_go_to_the_error_file(client: openai.OpenAI) -> None:
    data = _lines(2) + b"\n" + _lines(3, "bad", temperature=-1)
    batch = _final(client, _start(client, _upload(client, data)))
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 3)
    rows = [json.loads(x) for x in client.files.content(batch.error_file_id).text.splitlines()]
    assert [row["custom_id"] for row in rows] == ["bad0", "bad1", "bad2"]
    assert rows[0]["response"]["body"]["error"]["param"] == "temperature"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b'{"custom_id": "a"}',
        _lines(1).replace(b"/v1/chat/completions", b"/v1/files"),
        _lines(1, stream=True),
        _lines(1) + b"\n" + _lines(1),
        b"[" * 100_000,
    ],
)
def test_a_file_with_mistakes_fails_before_it_runs(
    client: openai.OpenAI, server: LiveServer, data: bytes
) -> None:
    batch = _final(client, _start(client, _upload(client, data)))
    assert batch.status == "failed"
    assert batch.errors.data[0].message
    assert not server.engine.seen


def test_a_batch_can_be_cancelled(tmp_path: Path) -> None:
    settings = {"data_dir": str(tmp_path), "max_concurrent_batch_requests": 2}
    with live_server(FakeEngine(reply="one two three.", delay=0.05), **settings) as server:
        client = openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)
        batch_id = _start(client, _upload(client, _lines(200)))
        assert wait_until(lambda: client.batches.retrieve(batch_id).request_counts.completed > 3)
        assert len(server.engine.running) <= 2
        assert client.batches.cancel(batch_id).status == "cancelling"
        batch = _final(client, batch_id)
        assert batch.status == "cancelled"
        assert 0 < batch.request_counts.completed < 200
        written = client.files.content(batch.output_file_id).text.splitlines()
        assert len(written) == batch.request_counts.completed


def test_batches_run_after_live_requests(client: openai.OpenAI, server: LiveServer) -> None:
    _final(client, _start(client, _upload(client, _lines(1))))
    assert server.engine.priorities[-1] > 0


def test_files_and_batches_belong_to_their_key(tmp_path: Path) -> None:
    with live_server(FakeEngine(), data_dir=str(tmp_path), api_key=("a", "b")) as server:
        ours = openai.OpenAI(base_url=f"{server.base}/v1", api_key="a", max_retries=0)
        theirs = openai.OpenAI(base_url=f"{server.base}/v1", api_key="b", max_retries=0)
        file_id = _upload(ours, _lines(1))
        batch_id = _start(ours, file_id)
        for call in (lambda: theirs.files.content(file_id),
                     lambda: theirs.batches.retrieve(batch_id)):  # fmt: skip
            with pytest.raises(openai.NotFoundError):
                call()
        with pytest.raises(openai.BadRequestError):
            _start(theirs, file_id)
        assert list(theirs.files.list()) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_batch_survives_the_server(tmp_path: Path, how: signal.Signals) -> None:
    args = ["--delay", "0.05", "--data-dir", str(tmp_path)]
    process, url = _serve(args)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    batch_id = _start(client, _upload(client, _lines(150, max_tokens=12)))
    assert wait_until(lambda: client.batches.retrieve(batch_id).request_counts.completed > 20)
    process.send_signal(how)
    process.wait(20)
    process, url = _serve(["--data-dir", str(tmp_path)])
    try:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        batch = _final(client, batch_id)
        assert batch.status == "completed"
        rows = client.files.content(batch.output_file_id).text.splitlines()
        assert [json.loads(r)["custom_id"] for r in rows] == [f"r{i}" for i in range(150)]
    finally:
        process.terminate()
        assert process.wait(20) == 0


def _serve(args: list[str]) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "serve_fake.py"), *args],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE.parent)])},
    )
    deadline = time.monotonic() + 30
    assert process.stderr is not None
    while time.monotonic() < deadline:
        line = process.stderr.readline()
        if " is ready at " in line:
            return process, line.split(" is ready at ")[1].split()[0]
    raise AssertionError("the server did not start")


@pytest.mark.parametrize(
    ("kwargs", "param"),
    [
        ({"data": {"purpose": "batch"}}, "file"),
        ({"files": {"file": b"x"}}, "purpose"),
        ({"content": b"junk", "headers": {"content-type": "multipart/form-data"}}, "file"),
        ({"content": b"junk", "headers": {"content-type": "multipart/form-data; boundary=x"}},
         "file"),
        ({"json": {}}, "file"),
    ],
)  # fmt: skip
def test_a_wrong_upload_is_a_400(server: LiveServer, kwargs: dict[str, object], param: str) -> None:
    answer = httpx.post(server.base + "/v1/files", **kwargs)  # type: ignore[arg-type]
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with live_server(data_dir=str(tmp_path), max_file_bytes=1000) as server:
        files = {"file": b"x" * 5000}
        answer = httpx.post(server.base + "/v1/files", files=files, data={"purpose": "batch"})
        assert answer.status_code == 413


def test_lists_come_in_pages(client: openai.OpenAI, server: LiveServer) -> None:
    ids = {_upload(client, b"x") for _ in range(5)}
    page = client.files.list(limit=2)
    assert len(page.data) == 2
    assert page.has_more
    assert {f.id for f in client.files.list(limit=2)} == ids
    assert httpx.get(server.base + "/v1/files?limit=x").status_code == 400


def test_two_servers_share_a_folder_and_run_a_batch_once(tmp_path: Path) -> None:
    first, url_1 = _serve(["--delay", "0.03", "--data-dir", str(tmp_path)])
    ours = openai.OpenAI(base_url=f"{url_1}/v1", api_key="none", max_retries=0)
    # So many that it still runs when the second server has started, however slow this machine is.
    batch_id = _start(ours, _upload(ours, _lines(6000, max_tokens=12)))
    assert wait_until(lambda: ours.batches.retrieve(batch_id).request_counts.completed > 5)
    second, url_2 = _serve(["--data-dir", str(tmp_path)])
    try:
        theirs = openai.OpenAI(base_url=f"{url_2}/v1", api_key="none", max_retries=0)
        seen = theirs.batches.retrieve(batch_id)
        assert seen.status == "in_progress"
        assert seen.request_counts.completed > 5
        assert httpx.get(url_2 + "/metrics").text.count('handler="/v1/chat/completions"') == 0
        assert theirs.batches.cancel(batch_id).status == "cancelling"
        assert _final(ours, batch_id).status == "cancelled"
        assert theirs.batches.retrieve(batch_id).status == "cancelled"
    finally:
        for process in (first, second):
            process.terminate()
            assert process.wait(20) == 0

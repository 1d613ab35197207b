"""Clients that leave, servers that drain."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from serve.fake_client import FakeEngine
from serve.live_server import live_server, wait_until

TEXT = "/v1/completions"
LONG = {"prompt": "a", "ignore_eos": True, "max_tokens": 2000}
HERE = Path(__file__).parent


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [TEXT, "/v1/chat/completions"])
def test_a_client_that_leaves_ends_its_request(path: str, stream: bool) -> None:
    body = {**LONG, "messages": [{"role": "user", "content": "a"}], "stream": stream}
    with live_server(FakeEngine(delay=0.02)) as server:
        _leave_early(server.base + path, body)
        assert server.wait_idle(5)
        assert server.engine.finished == 0
        assert server.ctx.drain.in_flight == 0


def _leave_early(url: str, body: dict[str, object]) -> None:
    with httpx.Client(timeout=httpx.Timeout(0.4, connect=5)) as client:
        try:
            with client.stream("POST", url, json=body) as answer:
                next(answer.iter_lines())
        except httpx.ReadTimeout:
            return


def test_a_storm_of_cancels_leaves_nothing_running(caplog: pytest.LogCaptureFixture) -> None:
    with live_server(FakeEngine(delay=0.005)) as server:
        asyncio.run(storm(server.port, streams=1000, seed=1))
        assert server.wait_idle(10)
        assert wait_until(lambda: server.ctx.drain.in_flight == 0)
        assert httpx.post(server.base + TEXT, json={"prompt": "a"}).status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def storm(port: int, streams: int, seed: int) -> None:
    """Opens streams and drops each at a random point: mid-request, mid-stream or at the end."""
    rng = random.Random(seed)
    gate = asyncio.Semaphore(200)
    payload = b'{"prompt": "a", "ignore_eos": true, "max_tokens": 300, "stream": true, "n": 2}'
    request = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(payload), payload)
    )

    async def one() -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            sent = len(request) if rng.random() < 0.9 else rng.randrange(len(request))
            writer.write(request[:sent])
            await writer.drain()
            if sent == len(request):
                for _ in range(rng.randrange(6)):
                    await reader.read(rng.randrange(1, 2000))
            if rng.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()

    await asyncio.wait_for(asyncio.gather(*(one() for _ in range(streams))), 60)


def test_draining_refuses_new_requests_and_finishes_running_ones() -> None:
    with live_server(FakeEngine(delay=0.02)) as server:
        answers: list[httpx.Response] = []
        body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True}

        def run() -> None:
            answers.append(httpx.post(server.base + TEXT, json=body, timeout=30))

        running = threading.Thread(target=run)
        running.start()
        assert wait_until(lambda: len(server.engine.running) == 1)
        server.call(server.server.begin_drain)
        assert wait_until(lambda: server.ctx.drain.draining)
        refused = httpx.post(server.base + TEXT, json=body)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert httpx.get(server.base + "/health").status_code == 200
        assert httpx.get(server.base + "/ready").status_code == 503
        running.join(30)
        assert answers[0].json()["usage"]["completion_tokens"] == 200
        assert server.join(10)


def test_a_drain_ends_when_its_time_is_over() -> None:
    with live_server(FakeEngine(delay=5), drain_timeout=0.3) as server:
        thread = threading.Thread(target=_ignore_errors, args=(server.base + TEXT,))
        thread.start()
        assert wait_until(lambda: len(server.engine.running) == 1)
        server.call(server.server.begin_drain)
        assert server.join(10)
        thread.join(10)


def _ignore_errors(url: str) -> None:
    try:
        httpx.post(url, json={"prompt": "a"}, timeout=30)
    except httpx.HTTPError:
        return


def _start(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / "serve_fake.py"), *args],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE.parent)])},
    )


def _ready_url(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if " is ready at " in line:
            return line.split(" is ready at ")[1].split()[0]
    raise AssertionError("the server did not start")


def test_sigterm_finishes_the_stream_then_exits_0() -> None:
    process = _start("--delay", "0.02")
    url = _ready_url(process)
    body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", url + TEXT, json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert "data: [DONE]" in rest
    assert process.wait(15) == 0


def test_a_second_signal_aborts() -> None:
    process = _start("--delay", "3")
    url = _ready_url(process)
    thread = threading.Thread(target=_ignore_errors, args=(url + TEXT,))
    thread.start()
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 128 + signal.SIGTERM
    thread.join(15)


def test_a_port_in_use_is_a_clear_error_and_exit_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = _start("--port", str(taken.getsockname()[1]))
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "in use" in stderr
    assert "Traceback" not in stderr

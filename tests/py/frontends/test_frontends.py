"""Several front ends before one engine: the same answers, one page of metrics, no one missed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zmq

from dlcore.bundled_model import make_config
from dlcore.core_engine import refusal
from dlcore.engine_client import EngineDeadError, QueueFullError
from dlcore.frontends.core_server import CoreServer
from dlcore.frontends.metrics import samples, summed
from dlcore.frontends.remote_core import RemoteBatch, RemoteCore, RemoteParams
from dlcore.runner import build_engine
from dlcore.sampling_params import ParameterError
from dlcore.serve.limits import Limits

SERVE = (sys.executable, "-m", "dlcore", "serve", "--frontends", "2", "--device", "cpu")


class Served:
    """`dlcore serve --frontends 2` as a process."""

    def __init__(self, *flags: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        command = [*SERVE, "--port", str(self.port), "--no-access-log", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.base = f"http://127.0.0.1:{self.port}"
        until(lambda: any("is ready" in line for line in self.log), 60)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def children(self) -> set[int]:
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {int(pid) for pid in listing.split()}

    def metric(self, name: str) -> float:
        page = httpx.get(f"{self.base}/metrics", timeout=30).text
        values = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", page, re.M)
        return sum(float(value) for value in values)

    def ask(self, count: int) -> httpx.Response:
        """On a new connection each time, so that the kernel spreads them."""
        body = {"prompt": [1, 2, 3], "max_tokens": count, "ignore_eos": True}
        return httpx.post(f"{self.base}/v1/completions", json=body, timeout=60)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(20)
        self._reader.join(5)
        return code


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    server = Served("--load-format", "null")
    yield server
    assert server.end() == 0


def test_every_request_gets_its_tokens_whichever_front_end_takes_it(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: served.ask(10 + i), range(32)))
    counts = [answer.json()["usage"]["completion_tokens"] for answer in answers]
    assert counts == [10 + i for i in range(32)]
    assert len(served.children()) == 2


def test_one_metrics_page_counts_for_all(served: Served) -> None:
    name = "dlcore:request_success_total"
    time.sleep(1.2)  # front ends tell each other twice a second
    before = served.metric(name)
    for _ in range(20):
        served.ask(3)
    time.sleep(1.2)
    assert {served.metric(name) - before for _ in range(6)} == {20.0}


def test_a_dead_front_end_is_replaced_and_its_requests_end(served: Served) -> None:
    victims = served.children()
    body = {"prompt": [1], "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(httpx.Client(base_url=served.base, timeout=60))
            stack.enter_context(client.stream("POST", "/v1/completions", json=body))
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        until(lambda: len(served.children()) == 2 and not victims & served.children())
    time.sleep(2.5)  # both listen again
    assert served.ask(5).status_code == 200
    until(lambda: served.metric("dlcore:num_requests_running") == 0)


def test_sigterm_lets_requests_finish() -> None:
    server = Served()  # the bundled model: slow enough to be caught at work
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(server.ask, 200) for _ in range(4)]
        until(lambda: server.metric("dlcore:num_requests_running") == 4)
        server.process.terminate()
        counts = [p.result().json()["usage"]["completion_tokens"] for p in pending]
    assert counts == [200] * 4
    assert server.process.wait(20) == 0


def test_a_taken_port_is_one_clear_line(served: Served) -> None:
    command = [*SERVE, "--load-format", "null", "--port", str(served.port)]
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 1
    assert f"port {served.port} is in use" in again.stderr
    assert "Traceback" not in again.stderr


def test_front_ends_do_not_outlive_their_engine() -> None:
    server = Served("--load-format", "null")
    children = server.children()
    server.process.kill()
    server.process.wait()
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children))


@pytest.fixture(scope="module")
def slow() -> Iterator[Served]:
    """With the bundled model: an answer can be caught at work."""
    server = Served()
    yield server
    assert server.end() == 0


RESPONSES = {"model": "dlcore-demo", "max_output_tokens": 4}
# Any token is as likely as the end; with this seed the end does not come.
ENDLESS = {"max_output_tokens": 1500, "temperature": 100, "seed": 7}


def respond(base: str, **fields: Any) -> Any:
    """On a connection of its own."""
    answer = httpx.post(f"{base}/v1/responses", json={**RESPONSES, **fields}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_response_is_found_whichever_front_end_made_it(served: Served) -> None:
    first = respond(served.base, input="hello there")
    for _ in range(8):
        url = f"{served.base}/v1/responses/{first['id']}"
        assert httpx.get(url).json()["output"] == first["output"]
        later = respond(served.base, input="and then?", previous_response_id=first["id"])
        assert later["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        assert later["previous_response_id"] == first["id"]
    last = respond(served.base, input="and then?", previous_response_id=later["id"])
    assert last["usage"]["input_tokens"] > later["usage"]["input_tokens"]
    assert httpx.delete(url).json()["deleted"] is True
    assert {httpx.get(url).status_code for _ in range(8)} == {404}


def num_posts(base: str) -> float:
    page = httpx.get(f"{base}/metrics", timeout=30).text
    counts = re.findall(r'^http_requests_total{.*method="POST".*} (\S+)$', page, re.M)
    return sum(float(count) for count in counts)


def test_what_one_front_end_passes_on_is_one_request(served: Served) -> None:
    first = respond(served.base, input="hello there")
    time.sleep(1.2)  # front ends tell each other twice a second
    before = num_posts(served.base)
    for _ in range(12):
        respond(served.base, input="and then?", previous_response_id=first["id"])
    time.sleep(1.2)
    assert num_posts(served.base) - before == 12


def test_a_stream_goes_on_from_a_response_of_any_front_end(served: Served) -> None:
    first = respond(served.base, input="hello there")
    ask = {**RESPONSES, "input": "go on", "previous_response_id": first["id"], "stream": True}
    for _ in range(8):
        with httpx.stream("POST", f"{served.base}/v1/responses", json=ask, timeout=60) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = [line[7:] for line in answer.iter_lines() if line.startswith("event: ")]
        assert events[0] == "response.created"
        assert events[-1] in ("response.completed", "response.incomplete")


def test_a_client_that_leaves_ends_its_stream_at_any_front_end(slow: Served) -> None:
    first = respond(slow.base, input="hello there")
    ask = {"input": "go on", "previous_response_id": first["id"], "stream": True}
    ask |= ENDLESS
    for _ in range(6):
        with httpx.stream("POST", f"{slow.base}/v1/responses", json=ask, timeout=60) as answer:
            assert answer.status_code == 200
            next(answer.iter_lines())
    until(lambda: slow.metric("dlcore:num_requests_running") == 0)


def test_a_background_response_is_cancelled_through_any_front_end(slow: Served) -> None:
    for _ in range(6):
        ask = {"input": "hello", "background": True, **ENDLESS}
        url = f"{slow.base}/v1/responses/{respond(slow.base, **ask)['id']}"
        assert httpx.post(f"{url}/cancel").json()["status"] == "cancelled"
    until(lambda: slow.metric("dlcore:num_requests_running") == 0)


def test_the_responses_of_a_dead_front_end_are_not_found(served: Served) -> None:
    made = [respond(served.base, input="hello")["id"] for _ in range(8)]
    victims = served.children()
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    until(lambda: len(served.children()) == 2 and not victims & served.children())
    time.sleep(2.5)  # both listen again
    for response_id in made:
        assert httpx.get(f"{served.base}/v1/responses/{response_id}").status_code == 404


# ---- the wire


@contextlib.contextmanager
def core_and_frontend(limits: Limits | None = None) -> Iterator[tuple[CoreServer, RemoteCore]]:
    loaded = build_engine(make_config(None, {"load_format": "null", "device": "cpu"}))
    server = CoreServer(loaded.core, 1, limits=limits)
    loaded.core.start()
    server.start()
    remote = RemoteCore(server.endpoint, 0)
    assert remote.wait_ready(10)
    yield server, remote
    remote.stop()
    server.stop()
    loaded.stop()


@pytest.fixture
def pair() -> Iterator[tuple[CoreServer, RemoteCore]]:
    with core_and_frontend() as both:
        yield both


def rows_of(remote: RemoteCore) -> RemoteBatch:
    batch: list[RemoteBatch] = []

    def arrived() -> bool:
        found = remote.poll(0.1)
        if found is not None:
            batch.append(found)
        return bool(batch)

    until(arrived)
    return batch[0]


def test_a_request_reaches_the_core_and_its_tokens_come_back(
    pair: tuple[CoreServer, RemoteCore],
) -> None:
    _, remote = pair
    remote.submit(7, np.array([1, 2], np.int32), RemoteParams(max_tokens=5, ignore_eos=True))
    tokens: list[int] = []
    finishes: list[int] = []
    while not any(finishes):
        for core_id, new, finish, _, _ in rows_of(remote).rows():
            assert core_id == 7
            tokens += new
            finishes.append(finish)
    assert len(tokens) == 5
    assert finishes[-1] == 2


def test_tokens_generated_elsewhere_cross_to_the_core(
    pair: tuple[CoreServer, RemoteCore],
) -> None:
    _, remote = pair
    past = np.array([5, 6, 7], np.int32)
    params = RemoteParams(max_tokens=5, ignore_eos=True)
    remote.submit(7, np.array([1, 2], np.int32), params, resume_token_ids=past)
    tokens: list[int] = []
    finish = 0
    while not finish:
        for row in rows_of(remote).rows():
            tokens += row[1]
            finish = row[2]
    assert len(tokens) == 2, "max_tokens counts the tokens brought along; they are not sent back"


def test_the_folder_is_private_and_a_peer_without_the_key_is_not_heard(
    pair: tuple[CoreServer, RemoteCore],
) -> None:
    server, remote = pair
    assert stat.S_IMODE(os.stat(server.endpoint.folder).st_mode) == 0o700
    with zmq.Context() as context, context.socket(zmq.PULL) as stranger:
        stranger.connect(server.endpoint.outputs(0))
        # Counters are sent several times a second; without the key none may arrive.
        assert stranger.poll(1000) == 0
    before = dict(remote.stats())
    until(lambda: remote.stats() is not before)


def test_what_the_core_refuses_comes_back_as_what_it_would_have_raised(
    pair: tuple[CoreServer, RemoteCore],
) -> None:
    _, remote = pair
    remote.submit(7, np.array([1], np.int32), RemoteParams(max_tokens=1, top_k=-5))
    batch = rows_of(remote)
    assert [row[0] for row in batch.rows()] == [7]
    error = refusal(batch.error(0))
    assert isinstance(error, ParameterError)
    assert error.param == "top_k"


def test_a_predecessors_rows_are_nobodys() -> None:
    loaded = build_engine(make_config(None, {"load_format": "null", "device": "cpu"}))
    server = CoreServer(loaded.core, 1)
    loaded.core.start()
    server.start()
    first = RemoteCore(server.endpoint, 0, 0)
    first.submit(7, np.array([1], np.int32), RemoteParams(max_tokens=1000, ignore_eos=True))
    first.stop()
    second = RemoteCore(server.endpoint, 0, 1)
    assert second.wait_ready(10)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        batch = second.poll(0.1)
        assert batch is None or {row[0] for row in batch.rows()} == {0}
    second.stop()
    server.stop()
    loaded.core.stop()


@pytest.mark.parametrize(
    ("text", "kind"), [("queue_full: x", QueueFullError), ("unavailable: x", EngineDeadError)]
)
def test_refusals_keep_their_kind(text: str, kind: type[Exception]) -> None:
    assert isinstance(refusal(text), kind)
    assert refusal("the step failed: out of memory") is None


def test_sums_are_over_all_front_ends() -> None:
    page = b'# TYPE a counter\na{x="1"} 2.0\na{x="2"} 3.0\n'
    whole = samples(summed(page, [{'a{x="1"}': 5.0}, {'a{x="3"}': 1.0}]))
    assert whole == {'a{x="1"}': 7.0, 'a{x="2"}': 3.0, 'a{x="3"}': 1.0}


def test_an_abort_after_the_stop_is_no_error(pair: tuple[CoreServer, RemoteCore]) -> None:
    _, remote = pair
    remote.stop()
    remote.abort([1])  # as the last clients' streams end

"""`dlcore serve --grpc-port`: the real process, the bundled model, the real clients."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import trustme
from serve.live_server import wait_until

from dlcore import LLM, SamplingParams
from dlcore.client import Client
from dlcore.engine_client import EngineDeadError, QueueFullError
from dlcore.sampling_params import ParameterError, StructuredOutputs

ENDLESS = SamplingParams(max_tokens=1500, ignore_eos=True, temperature=1.0, seed=1)
PROMPT = "dlcore is"


class Served:
    def __init__(self, *flags: str, device: str = "cpu") -> None:
        command = [sys.executable, "-m", "dlcore", "serve", "--port", "0", "--grpc-port", "0"]
        self.process = subprocess.Popen(
            [*command, "--device", device, *flags], stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert wait_until(lambda: self.found(r"is ready at (http\S+)"), 60), self.log
        (self.base,) = self.found(r"is ready at (http\S+)")
        (self.address,) = self.found(r"gRPC is ready at (\S+)")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def found(self, pattern: str) -> list[str]:
        return [m[1] for line in list(self.log) if (m := re.search(pattern, line))]

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[Served]:
    server = Served(*flags)
    try:
        yield server
    finally:
        server.end()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving("--num-kv-blocks", "2048") as server:
        yield server
        assert server.end() == 0


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.address) as made:
        yield made


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(device="cpu", num_kv_blocks=2048) as made:
        yield made


def idle(client: Client) -> bool:
    stats = client.stats()
    return not (stats["num_running"] or stats["num_waiting"] or stats["num_referenced_blocks"])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, max_tokens=24),
        SamplingParams(seed=7, top_k=20, top_p=0.75, min_p=0.03125, n=3, max_tokens=24),
        SamplingParams(
            seed=7, repetition_penalty=1.25, presence_penalty=0.5, frequency_penalty=0.5
        ),
        SamplingParams(temperature=0, stop="a", include_stop_str_in_output=True, max_tokens=50),
        SamplingParams(temperature=0, min_tokens=20, stop_token_ids=(5, 6), max_tokens=40),
        SamplingParams(temperature=0, allowed_token_ids=(100, 101, 102), max_tokens=8),
        SamplingParams(temperature=0, logit_bias={300: 100.0}, bad_words=("the",), max_tokens=8),
        SamplingParams(temperature=0, ignore_eos=True, skip_special_tokens=False, max_tokens=60),
        SamplingParams(temperature=0, logprobs=3, prompt_logprobs=2, max_tokens=8),
        SamplingParams(temperature=0, detokenize=False, max_tokens=8),
        SamplingParams(
            seed=1, max_tokens=40, structured_outputs=StructuredOutputs(regex="[0-9]{3}-[a-f]{2}")
        ),
    ],
    ids=lambda params: str(params)[:40],
)
def test_grpc_gives_what_the_python_api_gives(client: Client, llm: LLM, params) -> None:
    for prompt in (PROMPT, [17, 300, 45, 9]):
        given = prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt}
        (want,) = llm.generate([given], params)
        got = client.generate(prompt, params)
        for mine, theirs in zip(got.outputs, want.outputs, strict=True):
            assert mine.token_ids == theirs.token_ids
            assert mine.text == theirs.text
            assert (mine.finish_reason, mine.stop_reason) == (
                theirs.finish_reason,
                theirs.stop_reason,
            )
            assert [set(p) for p in mine.logprobs or []] == [set(p) for p in theirs.logprobs or []]
        wanted = want.prompt_logprobs or []
        assert [set(p or ()) for p in got.prompt_logprobs or []] == [set(p or ()) for p in wanted]


def test_every_kind_of_structure_holds(client: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "boolean"}},
        "required": ["sum"],
        "additionalProperties": False,
    }

    def ask(**constraint: object) -> str:
        params = SamplingParams(
            seed=3, max_tokens=80, structured_outputs=StructuredOutputs(**constraint)
        )
        return client.generate(PROMPT, params).outputs[0].text

    assert isinstance(json.loads(ask(json_schema=schema))["sum"], bool)
    assert ask(choice=("yes", "no")) in ("yes", "no")
    assert re.fullmatch("[0-9]{3}", ask(regex="[0-9]{3}"))
    assert ask(grammar='root ::= "left" | "right"') in ("left", "right")
    with pytest.raises(ParameterError, match="structured_outputs"):
        ask(regex="(")


@pytest.mark.parametrize(
    ("prompt", "params", "field"),
    [
        ("", SamplingParams(), "prompt"),
        ([1 << 20], SamplingParams(), "prompt"),
        ([-1], SamplingParams(), "prompt"),
        ([1] * 5000, SamplingParams(), "prompt"),
        ("hi", SamplingParams(allowed_token_ids=(1 << 20,)), "allowed_token_ids"),
        ("hi", SamplingParams(stop_token_ids=(-5,)), "stop_token_ids"),
    ],
)
def test_a_wrong_request_names_its_field(client: Client, prompt, params, field) -> None:
    with pytest.raises(ParameterError) as caught:
        client.generate(prompt, params)
    assert caught.value.param == field
    assert client.generate(PROMPT, SamplingParams(max_tokens=2)).finished


def test_abort_deadline_and_a_closed_stream_free_everything(client: Client) -> None:
    stream = client.stream(PROMPT, ENDLESS, request_id="mine")
    next(stream)
    client.abort("mine")
    assert list(stream)[-1].outputs[0].finish_reason == "abort"

    with pytest.raises(TimeoutError):
        client.generate(PROMPT, ENDLESS, timeout=0.1)

    stream = client.stream(PROMPT, ENDLESS)
    next(stream)
    stream.close()
    assert wait_until(lambda: idle(client), 20), client.stats()


def test_a_storm_of_cancelled_calls_leaves_nothing_behind(client: Client) -> None:
    def one(index: int) -> None:
        stream = client.stream(PROMPT, ENDLESS)
        for _ in range(index % 4):
            next(stream)
        stream.close()

    for start in range(0, 200, 25):
        threads = [threading.Thread(target=one, args=(start + i,)) for i in range(25)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert wait_until(lambda: idle(client), 30), client.stats()
    stats = client.stats()
    assert stats["num_free_blocks"] + stats["num_cached_blocks"] == stats["num_kv_blocks"]


def test_keys_and_certificates_are_those_of_http(tmp_path: Path) -> None:
    authority = trustme.CA()
    own, users = authority.issue_cert("127.0.0.1"), authority.issue_cert("someone@example.org")
    files = {name: tmp_path / name for name in ("cert", "key", "ca", "keys")}
    own.cert_chain_pems[0].write_to_path(files["cert"])
    own.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["ca"])
    files["keys"].write_text("# ours\none\ntwo\n")
    flags = ["--ssl-certfile", files["cert"], "--ssl-keyfile", files["key"]]
    flags += ["--ssl-ca-certs", files["ca"], "--api-key-file", files["keys"]]
    flags += ["--requests-per-minute", "3", "--load-format", "null"]
    pair = {
        "root_certificates": authority.cert_pem.bytes(),
        "client_certificate": users.cert_chain_pems[0].bytes(),
        "client_key": users.private_key_pem.bytes(),
    }
    short = SamplingParams(max_tokens=2)
    with serving(*map(str, flags)) as server:
        with Client(server.address, api_key="one", **pair) as good:
            for _ in range(3):
                assert good.generate([1, 2], short).finished
            with pytest.raises(QueueFullError, match="3 requests a minute"):
                good.generate([1, 2], short)
        with Client(server.address, api_key="two", **pair) as other:
            assert other.generate([1, 2], short).finished
        with (
            Client(server.address, api_key="three", **pair) as stranger,
            pytest.raises(PermissionError),
        ):
            stranger.generate([1, 2], short)
        bare = Client(server.address, api_key="one", root_certificates=authority.cert_pem.bytes())
        with bare, pytest.raises(EngineDeadError):  # it has no certificate of its own
            bare.generate([1, 2], short, timeout=10)


def test_sigterm_lets_calls_finish_refuses_new_ones_and_exits_0() -> None:
    with serving() as server, Client(server.address) as client:
        stream = client.stream(PROMPT, ENDLESS)
        count = len(next(stream).outputs[0].token_ids)
        server.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: httpx.get(f"{server.base}/ready").status_code == 503)
        with pytest.raises(EngineDeadError, match="shutting down"):
            client.generate(PROMPT)
        refused = httpx.post(f"{server.base}/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503
        count += sum(len(delta.outputs[0].token_ids) for delta in stream)
        assert count == ENDLESS.max_tokens
        assert server.process.wait(20) == 0


def test_a_second_signal_aborts_calls() -> None:
    with serving() as server, Client(server.address) as client:
        stream = client.stream(PROMPT, ENDLESS)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 128 + signal.SIGTERM
        with pytest.raises((EngineDeadError, RuntimeError)):
            list(stream)


def grpc_listener(server: Served) -> int:
    """The front end that listens on the gRPC port, by its open sockets."""
    port = int(server.address.rpartition(":")[2])
    for child in psutil.Process(server.process.pid).children():
        listening = (c for c in child.net_connections() if c.status == psutil.CONN_LISTEN)
        if any(c.laddr.port == port for c in listening):
            return child.pid
    raise AssertionError(f"no front end listens on {port}")


def test_with_several_front_ends_one_serves_grpc_and_a_new_one_takes_over() -> None:
    with serving("--frontends", "2", "--load-format", "null") as server:
        victim = grpc_listener(server)
        with Client(server.address) as client:
            assert len(client.generate([1, 2], ENDLESS).outputs[0].token_ids) == 1500
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(EngineDeadError):
                client.generate([1, 2], ENDLESS, timeout=10)
        ready = r"gRPC is ready at (\S+)"
        assert wait_until(lambda: len(server.found(ready)) == 2, 30), server.log
        server.address = server.found(ready)[-1]  # --grpc-port 0: another free port
        assert grpc_listener(server) != victim
        with Client(server.address) as client:
            assert len(client.generate([1, 2], ENDLESS).outputs[0].token_ids) == 1500
        page = httpx.get(f"{server.base}/metrics").text
        assert "grpc_server_handled_total" in page
        assert server.end() == 0

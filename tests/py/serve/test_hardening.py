"""Clients that are slow, silent, many or mad."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import struct
import time

import httpx
import pytest
from serve.fake_client import FakeEngine
from serve.live_server import LiveServer, live_server, wait_until

TEXT = "/v1/completions"
LONG = b'{"prompt": "a", "ignore_eos": true, "max_tokens": 4000, "stream": true, "n": 8}'


def _request(body: bytes = LONG) -> bytes:
    return (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )


def _connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def _closed_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            continue
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def _cut_off_while_sending(client: socket.socket, pieces: list[bytes], pause: float) -> bool:
    try:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(pause)
    except ConnectionError:
        return True
    return False


def _healthy(server: LiveServer) -> bool:
    return httpx.get(server.base + "/health", timeout=5).status_code == 200


def _connections_in_memory() -> int:
    gc.collect()
    return sum(type(thing).__name__ == "GuardedProtocol" for thing in gc.get_objects())


def test_a_connection_reset_after_its_answer_leaves_nothing_in_memory() -> None:
    with live_server() as server:
        before = _connections_in_memory()
        for _ in range(20):
            with _connect(server) as client:
                client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert wait_until(lambda: _connections_in_memory() <= before)


@pytest.mark.parametrize("begun", [b"", b"POST /v1/comp", b"POST / HTTP/1.1\r\nhost: x\r\nx-a"])
def test_a_client_that_never_ends_its_headers_is_cut_off(begun: bytes) -> None:
    with live_server(header_timeout=0.4) as server, _connect(server) as client:
        client.sendall(begun)
        assert _closed_within(client, 5)
        assert _healthy(server)


def test_headers_sent_a_byte_at_a_time_do_not_buy_time() -> None:
    with live_server(header_timeout=0.5) as server, _connect(server) as client:
        head = b"GET /health HTTP/1.1\r\n" + b"x" * 200
        assert _cut_off_while_sending(client, [bytes([byte]) for byte in head], pause=0.05)


def test_endless_headers_are_cut_off() -> None:
    with live_server() as server, _connect(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        headers = [b"x-%d: %s\r\n" % (i, b"y" * 500) for i in range(20_000)]
        assert _cut_off_while_sending(client, headers, pause=0)
        assert _healthy(server)


def test_a_body_that_stops_coming_is_a_408() -> None:
    with live_server(body_timeout=0.4) as server, _connect(server) as client:
        client.sendall(_request()[:-20])
        client.settimeout(5)
        assert b" 408 " in client.recv(4096)
        assert not server.engine.seen


def test_a_client_that_does_not_read_is_cut_off_and_its_request_ends() -> None:
    with live_server(FakeEngine(max_model_len=1 << 20), write_timeout=0.6) as server:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        with client:
            body = LONG.replace(b"4000", b"900000")
            client.sendall(_request(body))
            assert wait_until(lambda: bool(server.engine.running), 5)
            assert server.wait_idle(10)
            assert server.engine.finished == 0


def test_a_client_that_closes_its_side_ends_its_request() -> None:
    with live_server(FakeEngine(delay=0.05)) as server, _connect(server) as client:
        client.sendall(_request())
        assert wait_until(lambda: bool(server.engine.running), 5)
        client.shutdown(socket.SHUT_WR)
        assert server.wait_idle(5)


def test_random_bytes_harm_nobody() -> None:
    rng = random.Random(7)
    methods = [b"", b"GET ", b"POST /v1/completions HTTP/1.1\r\n", _request()[:90]]
    with live_server(header_timeout=1.0) as server:
        for _ in range(300):
            with _connect(server) as client:
                junk = rng.choice(methods) + rng.randbytes(rng.randrange(1, 400))
                try:
                    client.sendall(junk)
                    client.settimeout(0.01)
                    client.recv(1000)
                except (ConnectionError, TimeoutError):
                    continue
        assert _healthy(server)
        assert wait_until(lambda: server.ctx.drain.in_flight == 0, 10)


def test_random_bodies_are_never_a_5xx(http: httpx.Client) -> None:
    rng = random.Random(11)
    seed = (
        b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "a\\u00e9"}]}], '
        b'"logit_bias": {"1": 2.5}, "stop": ["x"], "temperature": 0.5, "tools": [{"type": '
        b'"function", "function": {"name": "f", "parameters": {"type": "object"}}}], "n": 2}'
    )
    for _ in range(600):
        body = bytearray(seed)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(body))
            body[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", TEXT):
            assert http.post(path, content=bytes(body)).status_code < 500


def test_a_thousand_idle_streams_leave_the_server_awake() -> None:
    with live_server(FakeEngine(delay=60)) as server:
        asyncio.run(_idle_streams(server))
        assert server.wait_idle(20)
        assert wait_until(lambda: server.ctx.drain.in_flight == 0)
        assert _healthy(server)


async def _idle_streams(server: LiveServer, count: int = 1000) -> None:
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(_request())
        writers.append(writer)
    deadline = time.monotonic() + 30
    while len(server.engine.running) < count and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert len(server.engine.running) == count
    async with httpx.AsyncClient() as client:
        began = time.monotonic()
        assert (await client.get(server.base + "/health", timeout=5)).status_code == 200
        assert time.monotonic() - began < 1.0
    for writer in writers:
        writer.transport.abort()


def test_connections_beyond_the_limit_are_refused() -> None:
    with live_server(max_connections=5) as server:
        held = [_connect(server) for _ in range(5)]
        time.sleep(0.2)
        with _connect(server) as extra:
            assert _closed_within(extra, 5)
        for connection in held:
            connection.close()
        assert wait_until(lambda: _reachable(server))


def _reachable(server: LiveServer) -> bool:
    try:
        return _healthy(server)
    except httpx.HTTPError:
        return False


def test_pipelined_requests_are_answered_in_order() -> None:
    with live_server() as server, _connect(server) as client:
        one = _request(b'{"prompt": "a", "max_tokens": 1}')
        client.sendall(one * 3 + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        client.settimeout(5)
        answer = b""
        while data := client.recv(65536):
            answer += data
        assert answer.count(b"HTTP/1.1 200") == 4
        assert answer.endswith(b'{"status":"ok"}')

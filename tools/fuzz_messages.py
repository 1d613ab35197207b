"""Hostile messages in the languages of dlcore's ports: HTTP/1, gRPC, KV frames, ZMTP, RESP.

Each is noise, a real message with bytes changed, or a message that lies about itself.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from dlcore.control.registration import new_member

CRLF = b"\r\n"
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(32)) * 6
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
KV_MAGIC = 0x564B4C44
KV_VERSION = 2
KV_HEADER = struct.Struct("<IBBHIQ")


@dataclass(frozen=True, slots=True)
class Message:
    """`complete`: a server that understood it answers without waiting for more."""

    data: bytes
    complete: bool = False


Maker = Callable[[random.Random], Message]


def noise(rng: random.Random) -> bytes:
    size = rng.choice((1, 7, 20, 64, 200, 1000, 9000))
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(size)
    if kind == 1:
        return b"\xff" * size
    if kind == 2:
        return bytes(rng.choice(b'GET /:\r\n\x00{}[]"%') for _ in range(min(size, 300)))
    return rng.randbytes(size)


def spoiled(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, repeated or put in."""
    spoilt = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(spoilt) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(spoilt):
            spoilt[at] = rng.randrange(256)
        elif kind == 1:
            del spoilt[at : at + rng.choice((1, 2, 9, 40))]
        elif kind == 2:
            spoilt[at:at] = spoilt[at : at + rng.choice((1, 8, 100))]
        elif kind == 3:
            spoilt[at:at] = rng.randbytes(rng.choice((1, 4, 30)))
        elif len(spoilt) > 1:
            del spoilt[rng.randrange(1, len(spoilt)) :]
    return bytes(spoilt) or b"\0"


# ---- HTTP/1

CHAT = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 2}
PROMPT = {"prompt": [5, 6, 7, 8], "max_tokens": 2, "temperature": 0, "seed": 3}
TICKET = "eyJlbmRwb2ludHMiOlsidGNwOi8vMTI3LjAuMC4xOjEiXX0=." + "0" * 64
Bodies: TypeAlias = tuple[tuple[str, dict[str, Any]], ...]
BODIES: Bodies = (
    ("/v1/completions", PROMPT),
    ("/v1/completions", {**PROMPT, "stream": True, "logprobs": 2}),
    ("/v1/completions", {**PROMPT, "kv_transfer_params": {"do_remote_decode": True}}),
    ("/v1/completions", {**PROMPT, "kv_transfer_params": {"ticket": TICKET}}),
    ("/v1/completions", {**PROMPT, "resume_token_ids": [[4]], "cache_salt": "s"}),
    ("/v1/chat/completions", {**CHAT, "stream": True, "stop": ["x"], "n": 2}),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}),
    ("/v1/responses", {"input": "hello", "max_output_tokens": 2}),
    ("/v1/messages", {**CHAT, "model": "dlcore-demo"}),
    ("/tokenize", {"prompt": "hello"}),
    ("/detokenize", {"tokens": [5, 6]}),
    ("/pd/free", {"ticket": TICKET}),
    ("/backends", {"action": "drain", "url": "http://127.0.0.1:1"}),
)
NODE = new_member("http://127.0.0.1:9", "decode", 2.0).entity("local")
CTRL_BODIES: Bodies = (
    ("/register", NODE),
    ("/unregister", {key: NODE[key] for key in ("entity_type", "entity_id", "scope")}),
    ("/list_entities", {"scope": "local"}),
)
PATHS = (
    "/health", "/ready", "/metrics", "/v1/models", "/version", "/openapi.json", "/", "/backends",
    "/v1/files", "/v1/batches", "/v1/responses/resp_0", "/playground/../../etc/passwd",
    "/playground/%2e%2e/%2e%2e/config.json", "//", "/\xff", "/v1/" + "a" * 3000, "*", "http://x/",
)  # fmt: skip
HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, -(2**64), 1e308, -0.0, float("nan"), float("inf"), "", "\0",
    "\u202e", "\ud800", "A" * 5000, [], {}, [[]], [None], [-1], [2**40], list(range(3000)),
    {"$ref": "#"}, {"type": "regex", "regex": "(a+)+$"}, "../../etc/passwd", "9" * 400,
)  # fmt: skip
HOSTILE_HEADERS = (
    b"content-length: -1", b"content-length: 99999999999999999999", b"content-length: 5, 6",
    b"transfer-encoding: chunked, chunked", b"transfer-encoding: gzip", b"expect: 100-continue",
    b"upgrade: h2c", b"connection: upgrade", b"host: ", b"x: " + b"y" * 70_000, b"\x00: \x01",
    b" folded: header", b"a" * 40_000, b"content-type: multipart/form-data; boundary=" + b"-" * 900,
    b"authorization: Bearer " + b"\xff" * 300, b"x-request-id: \r\n\r\nGET / HTTP/1.1",
    b"x-session-id: " + b"z" * 9000, b"traceparent: 00-" + b"g" * 200,
)  # fmt: skip


def hostile_json(body: dict[str, Any], rng: random.Random) -> bytes:
    """The body with one value replaced, removed or added, anywhere in it."""
    spoilt = json.loads(json.dumps(body))
    parent: Any = spoilt
    while True:
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key: Any = rng.choice(keys)
        child = parent[key]
        if isinstance(child, dict | list) and child and rng.random() < 0.7:
            parent = child
            continue
        break
    kind = rng.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(("n", "stop", "tools", "user", "best_of", "zz"))] = rng.choice(
            HOSTILE_VALUES
        )
    else:
        parent[key] = rng.choice(HOSTILE_VALUES)
    text = json.dumps(spoilt, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        return b"[" * 5000
    return spoiled(text, rng) if rng.random() < 0.2 else text


class Http:
    """`key`: one the server knows; two of three requests show it."""

    def __init__(self, key: str | None, bodies: Bodies = BODIES) -> None:
        self._key = key
        self._bodies = bodies

    def __call__(self, rng: random.Random) -> Message:
        kind = rng.randrange(10)
        if kind == 0:
            return Message(rng.choice((noise(rng), TLS_HELLO, HTTP2_PREFACE + noise(rng))))
        if kind == 1:
            target = rng.choice(PATHS).encode("latin-1")
            method = rng.choice((b"GET", b"GET", b"PUT", b"DELETE", b"OPTIONS", b"\x00", b"G" * 99))
            return Message(self._request(method + b" " + target, b"", rng), rng.random() < 0.5)
        path, body = rng.choice(self._bodies)
        line = b"POST " + path.encode()
        if kind <= 6:
            return Message(self._request(line, hostile_json(body, rng), rng), complete=True)
        real = self._request(line, json.dumps(body).encode(), rng)
        if kind == 7:
            return Message(self._chunked(line, body, rng))
        if kind == 8:
            head, _, rest = real.partition(CRLF)
            return Message(head + CRLF + rng.choice(HOSTILE_HEADERS) + CRLF + rest)
        return Message(spoiled(real, rng))

    def _request(self, line: bytes, body: bytes, rng: random.Random) -> bytes:
        head = [line + b" HTTP/1.1", b"host: x", b"connection: close"]
        head.append(b"content-length: %d" % len(body))
        if rng.random() < 0.9:
            head.append(b"content-type: application/json")
        if self._key and rng.random() < 0.66:
            head.append(b"authorization: Bearer " + self._key.encode())
        return CRLF.join(head) + CRLF + CRLF + body

    def _chunked(self, line: bytes, body: dict[str, Any], rng: random.Random) -> bytes:
        text = json.dumps(body).encode()
        sizes = (b"%x" % len(text), b"ffffffffffffffff", b"-1", b"0x10", b"", b"1;" + b"e" * 5000)
        head = line + b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        return head + rng.choice(sizes) + CRLF + text + CRLF + b"0\r\n\r\n"


# ---- gRPC


def http2_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def hpack(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Literals that are not indexed; names and values of up to 126 bytes."""
    return b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in headers
    )


RPC_METHODS = (b"Generate", b"Abort", b"GetModelInfo", b"GetStats", b"Nothing")


class Grpc:
    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, rng: random.Random) -> Message:
        kind = rng.randrange(8)
        if kind == 0:
            return Message(rng.choice((noise(rng), TLS_HELLO, b"GET / HTTP/1.1\r\n\r\n")))
        if kind == 1:
            return Message(HTTP2_PREFACE + noise(rng))
        if kind == 2:  # frames of every kind, with lengths and streams that make no sense
            frames = [
                http2_frame(
                    rng.randrange(12), rng.randrange(256), rng.choice((0, 1, 2, 2**31 - 1)),
                    rng.randbytes(rng.choice((0, 4, 5, 8, 6, 300))),
                )
                for _ in range(rng.randrange(1, 6))
            ]  # fmt: skip
            return Message(HTTP2_PREFACE + http2_frame(4, 0, 0, b"") + b"".join(frames))
        call = self._call(rng)
        return Message(call if kind <= 4 else spoiled(call, rng))

    def _call(self, rng: random.Random) -> bytes:
        key = [(b"authorization", b"Bearer " + self._key.encode())] if self._key else []
        headers = hpack(
            (
                (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"),
                (b":path", b"/dlcore.v1.Engine/" + rng.choice(RPC_METHODS)),
                (b"content-type", b"application/grpc"), (b"te", b"trailers"), *key,
            )
        )  # fmt: skip
        body = rng.randbytes(rng.choice((0, 3, 20, 300)))
        length = rng.choice((len(body), len(body), 2**32 - 1, 0))
        data = bytes([rng.choice((0, 0, 0, 1, 9))]) + struct.pack(">I", length) + body
        begin = HTTP2_PREFACE + http2_frame(4, 0, 0, b"")
        return begin + http2_frame(1, 4, 1, headers) + http2_frame(0, 1, 1, data)


# ---- KV transport, without the key


def kv_frame(rng: random.Random) -> Message:
    body = rng.randbytes(rng.choice((0, 16, 24, 64, 66, 322, 400)))
    kind = rng.randrange(8)
    if kind == 0:
        return Message(rng.choice((noise(rng), TLS_HELLO, b"GET / HTTP/1.1\r\n\r\n")))
    length = rng.choice((len(body), 2**31, 2**32 - 1)) if kind == 1 else len(body)
    wanted = rng.choice((2, 2, 2, rng.randrange(256)))  # HELLO
    frame = KV_HEADER.pack(KV_MAGIC, KV_VERSION, wanted, 0, length, rng.getrandbits(64)) + body
    return Message(spoiled(frame, rng) if kind <= 4 else frame)


# ---- ZMTP 3, in front of CURVE


def zmtp(rng: random.Random) -> Message:
    mechanism = rng.choice((b"CURVE", b"NULL", b"PLAIN", rng.randbytes(20)))
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)
    hello = b"\x05HELLO" + rng.randbytes(rng.choice((194, 10, 500)))
    command = rng.choice((hello, b"\x05READY" + rng.randbytes(30), noise(rng)))
    size = rng.choice((bytes([4, len(command) % 256]), b"\x06" + rng.randbytes(8)))
    real = greeting + size + command
    kind = rng.randrange(4)
    if kind == 0:
        return Message(noise(rng))
    return Message(real if kind == 1 else spoiled(real, rng))


# ---- Redis, which holds what discovery knows


def resp(rng: random.Random) -> Message:
    """Never a command that a client may give: `--discovery ctrl` trusts what Redis says."""
    kind = rng.randrange(4)
    if kind == 0:
        return Message(noise(rng))
    sizes = (-1, 0, 2**31, 2**63 - 1, rng.randrange(99))
    words = [b"$%d\r\n%s\r\n" % (rng.choice(sizes), noise(rng)) for _ in range(3)]
    real = b"*%d\r\n" % rng.choice((3, *sizes)) + b"".join(words)
    return Message(real if kind == 1 else spoiled(real, rng))

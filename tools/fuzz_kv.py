"""A reader that holds the deployment's key and asks for what is not its own.

Frames are those of docs/disaggregation.md, "Wire protocol". It reads its lease once as it may, and
from there on holds every answer against that: bytes may come only for ranges wholly inside leased
blocks, and must be those bytes.
"""

from __future__ import annotations

import hmac
import random
import secrets
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from fuzz_messages import KV_HEADER, KV_MAGIC, KV_VERSION, spoiled

HELLO, OPEN_LEASE, LEASE_INFO, READ, RELEASE, CANCEL = 2, 4, 5, 6, 8, 9
TIMEOUT_S = 10.0
OPEN = struct.Struct("<QQiiI")  # lease, tokens and layers it must have, milliseconds to wait
LAYOUT = struct.Struct("<iiII")
GROUP = struct.Struct("<5i")
READ_FIXED = struct.Struct("<QQIIII")
RANGE = struct.Struct("<QI")
PROGRESS_BYTES = 12  # tokens in all, tokens done, layers done

Range = tuple[int, int]


class RefusedError(Exception):
    """The owner ended the connection."""


class KvConnection:
    """An authenticated connection over TCP. Raises RefusedError when it ends."""

    def __init__(self, connection: socket.socket, key: bytes) -> None:
        self._connection = connection
        connection.settimeout(TIMEOUT_S)
        _, _, challenge = self.receive()
        nonce = secrets.token_bytes(32)
        proof = hmac.digest(key, b"dlcore-kv-1 reader tcp" + challenge + nonce, "sha256")
        self.send(HELLO, 0, nonce + proof + struct.pack("<H", 0))
        self.receive()  # WELCOME

    def send(self, kind: int, request: int, body: bytes) -> None:
        self.send_raw(KV_HEADER.pack(KV_MAGIC, KV_VERSION, kind, 0, len(body), request) + body)

    def send_raw(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise RefusedError from error

    def receive(self) -> tuple[int, int, bytes]:
        """(type, request, body)."""
        _, _, kind, _, length, request = KV_HEADER.unpack(self._exactly(KV_HEADER.size))
        return kind, request, self._exactly(length)

    def close(self) -> None:
        self._connection.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self._connection.recv(size - len(data))
            except OSError as error:
                raise RefusedError from error
            if not part:
                raise RefusedError
            data += part
        return data


@dataclass(slots=True)
class LeasedBytes:
    """What a lease holds: per layer, the bytes of each of its blocks."""

    block_bytes: int = 0
    blocks: list[int] = field(default_factory=list)
    layers: list[dict[int, bytes]] = field(default_factory=list)

    def at(self, layer: int, ranges: Sequence[Range]) -> bytes | None:
        """None unless every range is wholly inside leased blocks."""
        if layer >= len(self.layers):
            return None
        pieces = []
        for offset, length in ranges:
            end = offset + length
            if length == 0 or end > (max(self.blocks) + 1) * self.block_bytes:
                return None
            while offset < end:
                block, start = divmod(offset, self.block_bytes)
                held = self.layers[layer].get(block)
                if held is None:
                    return None
                stop = min(self.block_bytes, start + end - offset)
                pieces.append(held[start:stop])
                offset += stop - start
        return b"".join(pieces)


def read_lease(connection: KvConnection, lease: tuple[int, int]) -> LeasedBytes:
    """Opens the lease and reads all of it."""
    connection.send(OPEN_LEASE, 1, OPEN.pack(*lease, 0, 1, 5000))
    _, _, body = connection.receive()
    status, text_size = body[0], body[1]
    if status != 0:
        raise RefusedError(body[2 : 2 + text_size])
    _, _, num_groups, num_layers = LAYOUT.unpack_from(body, 2 + text_size)
    at = 2 + text_size + LAYOUT.size
    block_size, _, planes, heads, head_bytes = GROUP.unpack_from(body, at)
    at += num_groups * GROUP.size + num_layers * 4 + PROGRESS_BYTES
    (count,) = struct.unpack_from("<I", body, at)
    blocks = list(struct.unpack_from(f"<{count}i", body, at + 4))
    found = LeasedBytes(block_size * planes * heads * head_bytes, blocks)
    for layer in range(num_layers):
        found.layers.append({})
        for block in blocks:
            ranges = [(block * found.block_bytes, found.block_bytes)]
            connection.send(READ, 2, read_body(lease, layer, ranges))
            _, _, reply = connection.receive()
            if reply[0] != 0:
                raise RefusedError(reply[2:])
            found.layers[layer][block] = reply[2 + reply[1] :]
    return found


def read_body(lease: tuple[int, int], layer: int, ranges: Sequence[Range]) -> bytes:
    fixed = READ_FIXED.pack(*lease, layer, 2000, 0, len(ranges))
    return fixed + b"".join(RANGE.pack(*one) for one in ranges)


def decoded(body: bytes) -> tuple[tuple[int, int], int, list[Range]] | None:
    """(lease, layer, ranges) of a READ as the owner must understand it."""
    if len(body) < READ_FIXED.size:
        return None
    lease_id, epoch, layer, _, _, count = READ_FIXED.unpack_from(body)
    if count == 0 or len(body) != READ_FIXED.size + count * RANGE.size:
        return None
    ranges = list(RANGE.iter_unpack(body[READ_FIXED.size :]))
    return (lease_id, epoch), layer, ranges


class Intruder:
    """Sends hostile frames over authenticated connections, and judges the answers."""

    def __init__(self, lease: tuple[int, int], leased: LeasedBytes, rng: random.Random) -> None:
        self._lease = lease
        self._leased = leased
        self._rng = rng
        self.sent = 0
        self.granted = 0
        self.findings: list[str] = []

    def attack(self, connection: KvConnection, count: int) -> None:
        """Up to `count` frames; returns early when the owner has had enough."""
        try:
            for _ in range(count):
                self._one(connection)
        except RefusedError:
            pass

    def _one(self, connection: KvConnection) -> None:
        self.sent += 1
        rng = self._rng
        if rng.random() < 0.1:
            connection.send_raw(self._other_frame())
            return
        body = read_body(self._lease, rng.choice((0, 1, 7, 8, 2**31)), self._ranges())
        if rng.random() < 0.3:
            spoilt = bytearray(body)
            for _ in range(rng.randrange(1, 4)):
                spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
            body = bytes(spoilt)
        number = rng.getrandbits(64)
        connection.send(READ, number, body)
        while True:
            kind, request, reply = connection.receive()
            if request == number:
                break
            if kind == LEASE_INFO and reply[0] == 0:
                self.findings.append("another lease was described")
        self._judge(body, reply)

    def _judge(self, body: bytes, reply: bytes) -> None:
        if reply[0] != 0:
            return
        self.granted += 1
        asked = decoded(body)
        payload = reply[2 + reply[1] :]
        want = None
        if asked is not None and asked[0] == self._lease:
            want = self._leased.at(asked[1], asked[2])
        if want is None or payload != want:
            self.findings.append(f"{len(payload)} bytes for {asked}, leased {self._leased.blocks}")

    def _ranges(self) -> list[Range]:
        return [self._range() for _ in range(self._rng.choice((1, 1, 1, 2, 5)))]

    def _range(self) -> Range:
        """In the lease, beside it, across its edge, or nowhere."""
        rng, size = self._rng, self._leased.block_bytes
        block = rng.choice(self._leased.blocks)
        kind = rng.randrange(6)
        if kind <= 1:
            start = rng.randrange(size)
            return block * size + start, rng.randrange(1, size - start + 1)
        if kind == 2:
            return block * size + rng.randrange(size), rng.randrange(1, 3 * size)
        if kind == 3:
            return max(0, block + rng.choice((-1, 1, 7))) * size, rng.randrange(1, 200)
        if kind == 4:
            return rng.choice((2**64 - 1, 2**63, 2**64 - size, 2**32)), rng.choice((1, size, 2**31))
        return rng.randrange(2**24), rng.choice((0, 1, 2**32 - 1))

    def _other_frame(self) -> bytes:
        """Opens, releases of other leases, cancels, lengths that lie: the connection may end."""
        rng = self._rng
        kind = rng.choice((OPEN_LEASE, RELEASE, CANCEL, HELLO, rng.randrange(256)))
        lease = (rng.randrange(64), rng.getrandbits(64))
        body = b"" if kind == CANCEL else struct.pack("<QQ", *lease)
        if kind == OPEN_LEASE:
            body = OPEN.pack(*lease, rng.randrange(9), rng.randrange(9), 10)
        frame = KV_HEADER.pack(KV_MAGIC, KV_VERSION, kind, 0, len(body), rng.getrandbits(64)) + body
        return spoiled(frame, rng) if rng.random() < 0.05 else frame

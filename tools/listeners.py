"""What a tree of processes listens on, as the kernel sees it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LISTENING = "0A"  # of /proc/net/tcp
ACCEPTS = 0x10000  # flag of /proc/net/unix


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """`port` of TCP on the loopback, or the `path` of a Unix socket."""

    owner: str
    kind: str
    port: int = 0
    path: str = ""

    @property
    def name(self) -> str:
        return f"{self.owner} {self.kind}"

    def connect(self, timeout_s: float) -> socket.socket:
        if self.port:
            return socket.create_connection(("127.0.0.1", self.port), timeout_s)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        connection.connect(self.path)
        return connection


def process_tree(pid: int) -> list[int]:
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += process_tree(int(child))
    return found


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def listening(pids: list[int]) -> tuple[set[int], set[str]]:
    """(TCP ports, paths of Unix sockets) that the processes listen on."""
    inodes = {inode for pid in pids for inode in _sockets(pid)}
    ports = {port for inode, port in _tcp_listeners() if inode in inodes}
    paths = {path for inode, path in _unix_listeners() if inode in inodes}
    return ports, paths


def _sockets(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                target = os.readlink(entry.path)
                if target.startswith("socket:["):
                    yield target[len("socket:[") : -1]


def _tcp_listeners() -> Iterator[tuple[str, int]]:
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING:
                yield fields[9], int(fields[1].rpartition(":")[2], 16)


def _unix_listeners() -> Iterator[tuple[str, str]]:
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & ACCEPTS:
            yield fields[6], fields[7]

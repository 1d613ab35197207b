"""Where the sockets are, and the key that opens them.

Sockets are Unix sockets in a folder only this user can enter, and CURVE: a peer that does not know
the engine's public key, which only its children are told, cannot say a word.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import zmq

Socket: TypeAlias = "zmq.Socket[bytes]"
Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"

HIGH_WATER_MARK = 0  # unbounded: the engine bounds what is in flight, and must never block


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    folder: str
    public_key: bytes

    @property
    def requests(self) -> str:
        return f"ipc://{self.folder}/requests"

    def outputs(self, worker: int) -> str:
        return f"ipc://{self.folder}/outputs-{worker}"


class EndpointOwner:
    """The engine's side: makes the folder and the key, binds; remove() when done."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dlcore-")  # mode 0700
        public, self._secret = zmq.curve_keypair()
        self.endpoint = Endpoint(folder=self._folder.name, public_key=public)

    def bind(
        self, context: zmq.Context[zmq.Socket[bytes]], kind: int, address: str
    ) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.set_hwm(HIGH_WATER_MARK)
        socket.curve_secretkey = self._secret
        socket.curve_server = True
        socket.bind(address)
        return socket

    def remove(self) -> None:
        if Path(self._folder.name).exists():
            self._folder.cleanup()


def connect(context: Context, kind: int, address: str, server_key: bytes) -> Socket:
    """A front end's socket."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.set_hwm(HIGH_WATER_MARK)
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.curve_serverkey = server_key
    socket.connect(address)
    return socket

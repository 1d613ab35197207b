"""Where stored responses are when several processes serve one port: each in the one that made it.

A response's id begins with its home's mark. What concerns it is passed on to its home, over a Unix
socket in a folder that only this user can enter.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import aiohttp
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dlcore.serve.errors import not_found, send_error
from dlcore.serve.record import new_id

_ID = re.compile(r"resp_([0-9a-f]{2})[0-9a-f]{32}\Z")
# Of one connection, not of the message; and what the server in front writes itself.
_OWN_HEADERS = {
    "connection", "keep-alive", "transfer-encoding", "content-length", "expect", "host", "date",
    "x-request-id",
}  # fmt: skip
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)


class ResponseHomes:
    def __init__(self, folder: str, worker: int) -> None:
        self._folder = Path(folder)
        self._mark = f"{worker:02x}"

    def listen(self) -> socket.socket:
        """A bound socket for what others pass on to this home. Raises OSError."""
        path = self._socket(self._mark)
        path.unlink(missing_ok=True)  # a predecessor's
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        return listener

    def new_id(self) -> str:
        return f"resp_{self._mark}{new_id()}"

    def elsewhere(self, response_id: str) -> Path | None:
        """The home of a response that cannot be here."""
        found = _ID.match(response_id)
        if found is None or found[1] == self._mark:
            return None
        path = self._socket(found[1])
        return path if path.exists() else None

    def _socket(self, mark: str) -> Path:
        return self._folder / f"responses-{mark}"


class PassedOn(Response):
    """The home's answer to the request. A client that goes away ends it there too."""

    def __init__(self, home: Path, request: Request, body: bytes = b"") -> None:
        super().__init__()
        self._home = home
        self._request = request
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passing = asyncio.create_task(self._pass(scope, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((passing, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            passing.cancel()
        with suppress(asyncio.CancelledError):
            await passing

    async def _pass(self, scope: Scope, send: Send) -> None:
        connector = aiohttp.UnixConnector(str(self._home))
        async with aiohttp.ClientSession(
            connector=connector, timeout=_NO_TIMEOUT, auto_decompress=False
        ) as session:
            try:
                reply = await session.request(
                    self._request.method,
                    f"http://home{self._request.url.path}",
                    params=self._request.query_params.multi_items(),
                    data=self._body,
                    headers=_passed(self._request.headers.items()),
                )
            except aiohttp.ClientError:  # the home died, and with it what it stored
                await send_error(send, not_found("the response is lost"), scope["path"])
                return
            async with reply:
                await _relay(reply, send)


async def _relay(reply: aiohttp.ClientResponse, send: Send) -> None:
    headers = [(k.encode(), v.encode("latin-1")) for k, v in _passed(reply.headers.items())]
    start = {"type": "http.response.start", "status": reply.status, "headers": headers}
    await send(start)
    async for chunk in reply.content.iter_any():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _passed(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(k.lower(), v) for k, v in headers if k.lower() not in _OWN_HEADERS]

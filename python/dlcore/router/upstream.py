"""One attempt at one node: send the request, read the answer, tell failures apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from dlcore.router.backend import Backend, State
from dlcore.router.sse import EventSplitter

# Statuses after which another node may do better; the rest is the client's own doing.
RETRYABLE = frozenset({429, 500, 502, 503, 504})
POLL_S = 0.25  # how often a silent stream looks whether its node was declared down


class NodeError(Exception):
    """The node did not answer, or answered that it cannot; `status` is None for the former."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_node_fault(self) -> bool:
        """A full queue is no fault of the node's health, nor is a request it refuses."""
        return self.status is None or self.status in (500, 502, 504)


class Answer:
    """An open response. `status` and `headers` as the node sent them."""

    def __init__(self, backend: Backend, response: aiohttp.ClientResponse) -> None:
        self._backend = backend
        self._response = response
        self.status = response.status
        self.headers = response.headers

    async def body(self) -> bytes:
        """Raises NodeError when the node goes away meanwhile."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        """Raises NodeError when the node goes away, or is found down while it is silent."""
        content = self._response.content
        while True:
            read = asyncio.ensure_future(content.readany())
            try:
                chunk = await self._first_of(read)
            except (aiohttp.ClientError, OSError) as error:
                raise NodeError(f"{self._backend.url}: {error}") from error
            finally:
                read.cancel()
            if not chunk:
                return
            yield chunk

    async def events(self) -> AsyncIterator[bytes]:
        """Raises NodeError when the node goes away, or sends what cannot be an event."""
        splitter = EventSplitter()
        async for chunk in self.chunks():
            try:
                events = splitter.push(chunk)
            except ValueError as wrong:
                raise NodeError(str(wrong)) from None
            for event in events:
                yield event

    async def _first_of(self, read: asyncio.Future[bytes]) -> bytes:
        while True:
            done, _ = await asyncio.wait({read}, timeout=POLL_S)
            if done:
                return read.result()
            if self._backend.state is State.DOWN:
                raise NodeError(f"{self._backend.url} went down: {self._backend.last_error}")


@asynccontextmanager
async def ask(
    session: aiohttp.ClientSession,
    backend: Backend,
    method: str,
    path: str,
    *,
    json: Any = None,
    data: bytes | None = None,
    headers: Mapping[str, str],
    timeout: aiohttp.ClientTimeout,
) -> AsyncIterator[Answer]:
    """Yields the node's answer once its status is known.

    Raises NodeError when there is none, or when its status is RETRYABLE.
    """
    try:
        response = await _send(session, backend, method, path, json, data, headers, timeout)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise NodeError(f"{backend.url}: {reason}") from error
    try:
        if response.status in RETRYABLE:
            text = (await response.text(errors="replace"))[:300]
            raise NodeError(f"{backend.url} answered {response.status}: {text}", response.status)
        yield Answer(backend, response)
    finally:
        response.close()


async def _send(
    session: aiohttp.ClientSession,
    backend: Backend,
    method: str,
    path: str,
    json: Any,
    data: bytes | None,
    headers: Mapping[str, str],
    timeout: aiohttp.ClientTimeout,
) -> aiohttp.ClientResponse:
    """The response, unless the node is declared down while it keeps silent."""
    request = asyncio.ensure_future(
        session.request(
            method, backend.url + path, json=json, data=data, headers=headers, timeout=timeout
        )
    )
    try:
        while True:
            done, _ = await asyncio.wait({request}, timeout=POLL_S)
            if done:
                return request.result()
            if backend.state is State.DOWN:
                raise aiohttp.ClientConnectionError(f"went down: {backend.last_error}")
    finally:
        if not request.done():
            request.cancel()

"""Between a decode node and a prefill node: breaks their connection at a chosen message."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from types import MappingProxyType

import aiohttp
from aiohttp import web

from dlcore.kv_ticket import open_ticket, sign_ticket

# docs/disaggregation.md, "Wire protocol".
HEADER = struct.Struct("<IBBHIQ")
MAGIC = 0x564B4C44
TYPES = MappingProxyType({"CHALLENGE": 1, "WELCOME": 3, "LEASE_INFO": 5, "READ_REPLY": 7})

TICKET = re.compile(rb"[A-Za-z0-9_\-=]{60,}\.[0-9a-f]{64}")


class KvProxy:
    """Forwards KV connections to `target`; at the `nth` frame of a type calls `fault` once.

    `fault` runs when half of the frame was passed on. Then the connection ends, or, where it
    returns False, stays open and silent.
    """

    def __init__(self, target: int, frame: str, nth: int, fault: Callable[[], bool]) -> None:
        self._target = target
        self._type = TYPES[frame]
        self._left = nth
        self._fault = fault
        self.port = 0

    @property
    def struck(self) -> bool:
        return self._left <= 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            back, there = await asyncio.open_connection("127.0.0.1", self._target)
            requests = asyncio.create_task(_pass_on(reader, there))
            try:
                await self._replies(back, writer)
            finally:
                requests.cancel()
                there.transport.abort()
        writer.transport.abort()

    async def _replies(self, back: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            header = await back.readexactly(HEADER.size)
            magic, _, kind, _, length, _ = HEADER.unpack(header)
            assert magic == MAGIC
            body = await back.readexactly(length)
            if kind == self._type and not self.struck:
                self._left -= 1
                if self.struck:
                    writer.write(header + body[: length // 2])
                    await writer.drain()
                    if self._fault():
                        return
                    await asyncio.Event().wait()
            writer.write(header + body)
            await writer.drain()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def kv_proxy(
    target: int, frame: str, nth: int, fault: Callable[[], bool]
) -> AsyncIterator[KvProxy]:
    proxy = KvProxy(target, frame, nth, fault)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()


@asynccontextmanager
async def moved_tickets(node: str, kv_port: int, key: bytes) -> AsyncIterator[str]:
    """The URL of a stand-in for the prefill node whose tickets name `kv_port` instead of its own.

    All else is the node's.
    """

    def moved(match: re.Match[bytes]) -> bytes:
        ticket = open_ticket(match.group().decode(), key)
        endpoints = (f"tcp://127.0.0.1:{kv_port}",)
        return sign_ticket(replace(ticket, endpoints=endpoints), key).encode()

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() in PASSED}
        async with session.request(
            request.method, node + request.path_qs, headers=headers, data=await request.read()
        ) as answer:
            content_type = answer.headers.get("content-type", "")
            reply = web.StreamResponse(status=answer.status, headers={"content-type": content_type})
            await reply.prepare(request)
            async for chunk in answer.content.iter_any():
                await reply.write(TICKET.sub(moved, chunk))
            await reply.write_eof()
            return reply

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    async with aiohttp.ClientSession() as session:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await runner.cleanup()


PASSED = frozenset({"authorization", "content-type"})

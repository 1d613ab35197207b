"""Calls a route of this server without a connection, for the lines of a batch."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.types import ASGIApp, Message

from dlcore.serve.record import SCOPE_KEY, RequestRecord, new_id


async def call_route(app: ASGIApp, path: str, body: object, owner: str) -> tuple[int, str, bytes]:
    """POSTs `body`; the status, the request id and the answer's body."""
    record = RequestRecord(
        request_id=new_id(), method="POST", path=path, client="batch", key_name=owner
    )
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": None,
        SCOPE_KEY: record,
    }
    pending: list[Message] = [
        {"type": "http.request", "body": msgspec.json.encode(body), "more_body": False}
    ]
    chunks: list[bytes] = []

    async def receive() -> Message:
        if pending:
            return pending.pop()
        await asyncio.Event().wait()  # a batch never hangs up
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
        else:
            chunks.append(message.get("body", b""))

    await app(scope, receive, send)
    return record.status, record.request_id, b"".join(chunks)

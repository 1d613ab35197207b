"""A request's body, read within bounds."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dlcore.router.errors import error


async def read_json(request: Request, max_bytes: int) -> dict[str, Any] | Response:
    """The decoded object, or the answer that says what is wrong with it."""
    raw = bytearray()
    try:
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > max_bytes:
                return error(413, f"the body is larger than {max_bytes} bytes")
    except ClientDisconnect:
        return error(499, "the client closed the connection")  # nobody reads it
    try:
        body = msgspec.json.decode(bytes(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        return error(400, f"the body is not valid JSON: {problem}")
    if not isinstance(body, dict):
        return error(400, "the body must be a JSON object")
    return body

"""Errors as the clients of each API expect them."""

from __future__ import annotations

import msgspec
from starlette.responses import JSONResponse

from dlcore.named_event import named_event


def error(status: int, message: str, param: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "service_unavailable"
    body = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": body}, status)


def error_event(path: str, message: str) -> bytes:
    """The end of a stream that failed, as the clients of its API expect it."""
    encode = msgspec.json.encode
    if path == "/v1/messages":
        detail = {"type": "overloaded_error", "message": message}
        return named_event("error", encode({"type": "error", "error": detail}))
    if path == "/v1/responses":
        event = {"type": "error", "code": "server_error", "message": message, "param": None}
        return named_event("error", encode(event))
    body = {"message": message, "type": "service_unavailable", "code": 503}
    return b"data: " + encode({"error": body}) + b"\n\n"

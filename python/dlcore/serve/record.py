"""What is known about one HTTP request, from its first byte to the access log."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Scope

SCOPE_KEY = "dlcore.record"
# The server's own `send`. A stream's chunks need nothing of the layers in between.
SEND_KEY = "dlcore.send"
_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


def new_id() -> str:
    return uuid.uuid4().hex


def safe_id(text: str | None) -> str | None:
    """`text` where it may be used as an id in headers and logs, else None."""
    return text if text is not None and _SAFE_ID.match(text) else None


@dataclass(slots=True)
class RequestRecord:
    request_id: str
    method: str
    path: str
    client: str
    started: float = field(default_factory=time.monotonic)
    key_name: str = ""
    status: int = 0
    model: str = ""
    stream: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    time_to_first_token: float | None = None
    disconnected: bool = False

    @classmethod
    def from_scope(cls, scope: Scope) -> RequestRecord:
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), None)
        request_id = safe_id(given.decode("latin-1")) if given is not None else None
        client = scope.get("client")
        return cls(
            request_id=request_id or new_id(),
            method=scope["method"],
            path=scope["path"],
            client=client[0] if client else "",
        )


def was_passed_on(scope: Scope) -> bool:
    """Another front end sent it, by Unix socket: that one has logged and counted it."""
    server = scope.get("server")  # (host, port); by a Unix socket (path, None), or nothing
    return server is None or server[1] is None


def record_of(request: Request) -> RequestRecord:
    record: RequestRecord = request.scope[SCOPE_KEY]
    return record

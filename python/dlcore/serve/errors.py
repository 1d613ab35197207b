"""What a client sees when a request fails, in the shape its SDK expects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlcore.engine_client import EngineDeadError, QueueFullError
from dlcore.sampling_params import ParameterError

logger = logging.getLogger("dlcore.serve")

ANTHROPIC_PATH = "/v1/messages"
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An error answer; `param` names the request field that caused it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def renamed(self, names: Mapping[str, str]) -> ApiError:
        """The same error of an API that has other names for its fields."""
        name = names.get(self.param or "")
        if name is not None and self.param is not None:
            self.message = self.message.replace(self.param, name, 1)
            self.param = name
        return self

    def openai(self) -> dict[str, Any]:
        detail = {"message": self.message, "type": self.kind, "param": self.param}
        return {"error": {**detail, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        kind = ANTHROPIC_TYPES.get(self.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def body(self, path: str) -> dict[str, Any]:
        return self.anthropic() if path.startswith(ANTHROPIC_PATH) else self.openai()


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def not_found(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(404, message, kind="not_found_error", param=param, code=code)


def too_many(message: str, retry_after: float) -> ApiError:
    headers = {"retry-after": str(max(1, round(retry_after)))}
    return ApiError(
        429, message, kind="rate_limit_error", code="rate_limit_exceeded", headers=headers
    )


def unavailable(message: str, retry_after: int = 5) -> ApiError:
    headers = {"retry-after": str(retry_after), "connection": "close"}
    return ApiError(503, message, kind="service_unavailable_error", headers=headers)


def client_gone() -> ApiError:
    """Nobody reads it; the access log shows it."""
    return ApiError(499, "the client closed the connection", kind="client_closed_request")


def to_api_error(exc: Exception) -> ApiError:
    """The answer to any exception; an unexpected one is logged and told apart as ours."""
    match exc:
        case ApiError():
            return exc
        case ParameterError():
            return bad_request(str(exc), exc.param)
        case QueueFullError():
            return too_many(str(exc) or "the request queue is full, try again later", 1)
        case EngineDeadError():
            return unavailable(f"the engine stopped: {exc}")
        case ClientDisconnect():
            return client_gone()
        case TimeoutError() | asyncio.TimeoutError():  # one class only since Python 3.11
            return ApiError(504, "the request took longer than allowed", kind="timeout_error")
    logger.error("request failed: %r", exc, exc_info=exc)
    return ApiError(500, "internal server error", kind="internal_error")


async def send_error(send: Send, error: ApiError, path: str) -> None:
    body = msgspec.json.encode(error.body(path))
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    raw = [(k.encode(), v.encode("latin-1")) for k, v in {**headers, **error.headers}.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


class ErrorBoundary:
    """Turns whatever the routes raise into one JSON error; nothing reaches the server loop."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception as exc:
            # Its traceback holds this frame, which would hold it: both, and the request, would wait
            # for the garbage collector.
            error = to_api_error(exc).with_traceback(None)
            if not started:
                await send_error(send, error, scope["path"])
            else:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

"""One JSON line per request, and the request id every answer carries."""

from __future__ import annotations

import logging
import time

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlcore.serve.metrics import Metrics
from dlcore.serve.record import SCOPE_KEY, SEND_KEY, RequestRecord, was_passed_on

access_logger = logging.getLogger("dlcore.access")


class AccessLog:
    """Outermost: opens the request's record, closes it when the response has ended."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, enabled: bool, paths: frozenset[str]
    ) -> None:
        self.app = app
        self.paths = paths
        self.metrics = metrics
        self.enabled = enabled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord.from_scope(scope)
        scope[SCOPE_KEY] = record
        scope[SEND_KEY] = send
        request_id = record.request_id.encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            del scope[SEND_KEY]  # it holds the scope: both would wait for the garbage collector
            if not was_passed_on(scope):
                self._tell(record)

    def _tell(self, record: RequestRecord) -> None:
        # Clients choose paths: only the routes' own become label values.
        handler = record.path if record.path in self.paths else "other"
        self.metrics.count_http(record.method, handler, record.status)
        if self.enabled:
            access_logger.info("%s", access_line(record))


def access_line(record: RequestRecord) -> str:
    line: dict[str, object] = {
        "ts": round(time.time(), 3),
        "request_id": record.request_id,
        "client": record.client,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "duration_ms": round((time.monotonic() - record.started) * 1e3, 1),
    }
    if record.key_name:
        line["key"] = record.key_name
    if record.prompt_tokens:
        line |= _generation_fields(record)
    if record.disconnected:
        line["disconnected"] = True
    return msgspec.json.encode(line).decode()


def _generation_fields(record: RequestRecord) -> dict[str, object]:
    ttft = record.time_to_first_token
    return {
        "model": record.model,
        "stream": record.stream,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "finish_reason": record.finish_reason,
        "ttft_ms": None if ttft is None else round(ttft * 1e3, 1),
    }

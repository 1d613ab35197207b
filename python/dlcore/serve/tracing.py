"""OpenTelemetry, opt-in: one span per request, a child of the caller's trace.

The only file that knows the library; without `--otlp-endpoint` nothing of it runs.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from dlcore.config import ConfigError
from dlcore.serve.record import SCOPE_KEY, RequestRecord

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.propagate import extract
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode
except ImportError:  # pip install dlcore[otel]
    TracerProvider = None  # type: ignore[assignment,misc]


class Tracing:
    """Where spans go."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "dlcore"}))
        self._provider.add_span_processor(processor)

    def start(self, name: str, headers: dict[str, str]) -> Span:
        """A span whose parent is the caller's, where the headers name one."""
        tracer = self._provider.get_tracer("dlcore.serve")
        return tracer.start_span(name, context=extract(headers), kind=SpanKind.SERVER)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def make_tracing(endpoint: str) -> Tracing:
    """Raises ConfigError where OpenTelemetry is not installed."""
    if TracerProvider is None:
        raise ConfigError("otlp_endpoint", "install `dlcore[otel]` to send traces")
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


class TraceMiddleware:
    """Inside the access log, whose record of the request becomes the span's attributes."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record: RequestRecord = scope[SCOPE_KEY]
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        span = self._tracing.start(f"{record.method} {record.path}", headers)
        try:
            await self.app(scope, receive, send)
        finally:
            span.set_attributes(_attributes(record))
            if record.status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            span.end()


def _attributes(record: RequestRecord) -> dict[str, Any]:
    """The names of OpenTelemetry's conventions for HTTP and generative AI."""
    attributes: dict[str, Any] = {
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "url.path": record.path,
        "gen_ai.request.id": record.request_id,
    }
    if not record.prompt_tokens:
        return attributes
    attributes |= {
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.response.finish_reasons": [record.finish_reason],
        "gen_ai.latency.e2e": time.monotonic() - record.started,
    }
    if record.time_to_first_token is not None:
        attributes["gen_ai.latency.time_to_first_token"] = record.time_to_first_token
    return attributes

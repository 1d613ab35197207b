"""The steps that every endpoint begins and ends with."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dlcore.serve.body import decode, read_body
from dlcore.serve.context import ServerContext
from dlcore.serve.generation import Generation
from dlcore.serve.sse import EventStream, StreamEncoder

T = TypeVar("T", bound=msgspec.Struct)


async def json_body(ctx: ServerContext, request: Request, kind: type[T]) -> T:
    """The request's body, checked. Raises ApiError."""
    raw = await read_body(request, ctx.config.max_body_bytes, ctx.config.body_timeout)
    await ctx.turns.next()
    body = decode(raw, kind)
    ctx.unknown_fields.note(raw, kind)
    return body


def json_response(value: Any, status: int = 200) -> Response:
    body = msgspec.json.encode(value)
    return Response(body, status_code=status, media_type="application/json")


def stream_response(
    ctx: ServerContext, generation: Generation, encoder: StreamEncoder
) -> EventStream:
    return EventStream(
        generation,
        encoder,
        timeout_s=ctx.config.request_timeout,
        max_bytes=ctx.config.max_stream_bytes,
    )

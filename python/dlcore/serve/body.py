"""Reading and checking a request body: bounded in size and time, every mistake a 400."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from dlcore.serve.errors import ApiError, bad_request

logger = logging.getLogger("dlcore.serve")

T = TypeVar("T")

_AT_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")
_MAX_LOGGED_FIELDS = 1000  # clients choose field names: bound what is remembered


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Raises ApiError 413 beyond `max_bytes`, 408 after `timeout_s`."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    try:
        return await asyncio.wait_for(_collect(request, max_bytes), timeout_s)
    except (asyncio.TimeoutError, TimeoutError):
        raise ApiError(
            408,
            f"the request body did not arrive within {timeout_s:g} s",
            kind="timeout_error",
            headers={"connection": "close"},
        ) from None


async def _collect(request: Request, max_bytes: int) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the request body is larger than {max_bytes} bytes (--max-body-bytes)",
        code="request_too_large",
        headers={"connection": "close"},
    )


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(body: bytes, kind: type[T]) -> T:
    """`body` as `kind`. Raises ApiError 400 whose `param` is the field at fault."""
    try:
        value: T = _decoder(kind).decode(body)  # type: ignore[arg-type]
        return value
    except msgspec.ValidationError as exc:
        raise _field_error(str(exc)) from None
    except msgspec.DecodeError as exc:
        raise bad_request(f"the body is not valid JSON: {exc}", code="invalid_json") from None
    except UnicodeDecodeError as exc:
        raise bad_request(f"the body is not UTF-8: {exc.reason}", code="invalid_json") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply", code="invalid_json") from None


def _field_error(text: str) -> ApiError:
    where = _AT_PATH.search(text)
    path = where.group(1) if where else ""
    message = text[: where.start()] if where else text
    missing = _MISSING.search(message)
    if missing:
        path = f"{path}.{missing.group(1)}" if path else missing.group(1)
    message = message.replace("`", "")
    return bad_request(f"{path}: {message}" if path else message, path or None)


class UnknownFields:
    """Fields no API defines are accepted, and named in the log the first time each is seen."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def note(self, body: bytes, kind: type[msgspec.Struct]) -> None:
        # Skipped values are not decoded, but a name that is not UTF-8 is still a 400.
        given: dict[str, msgspec.Raw] = decode(body, dict[str, msgspec.Raw])
        if not given.keys() <= _field_names(kind):
            self._log(kind.__name__, given.keys() - _field_names(kind))

    def _log(self, where: str, names: Iterable[str]) -> None:
        for name in names:
            if (where, name) in self._seen or len(self._seen) >= _MAX_LOGGED_FIELDS:
                continue
            self._seen.add((where, name))
            logger.warning("ignoring unknown field %.80r of %s", name, where)


@cache
def _field_names(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))

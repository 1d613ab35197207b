"""A multipart upload: one file, streamed to disk, bounded in size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from dlcore.serve.errors import ApiError, bad_request

_CHUNK = 1 << 20


async def read_upload(request: Request, max_bytes: int) -> tuple[UploadFile, str]:
    """The file and its purpose. Raises ApiError 400 or 413."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise bad_request("file: send multipart/form-data with `file` and `purpose`", "file")
    try:
        parser = MultiPartParser(
            request.headers, _bounded(request, max_bytes), max_files=1, max_fields=16
        )
        form = await parser.parse()
    except (MultiPartException, HTTPException, UnicodeDecodeError, KeyError) as exc:
        raise bad_request(f"file: not readable multipart/form-data: {exc}", "file") from None
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, UploadFile):
        raise bad_request("file: is needed", "file")
    if not isinstance(purpose, str) or not purpose:
        raise bad_request("purpose: is needed, for example `batch`", "purpose")
    return file, purpose[:64]


async def save_upload(file: UploadFile, path: Path) -> None:
    """Copies the spooled file to `path`, all of it or nothing."""
    part = path.with_suffix(".part")
    with part.open("wb") as target:
        while chunk := await file.read(_CHUNK):
            await asyncio.to_thread(target.write, chunk)
    part.replace(path)


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise ApiError(
                413,
                f"the file is larger than {max_bytes} bytes (--max-file-bytes)",
                code="request_too_large",
                headers={"connection": "close"},
            )
        yield chunk

"""/v1/files: upload, list, get, download, delete."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from dlcore.serve.batch_runner import BatchRunner
from dlcore.serve.context import ServerContext
from dlcore.serve.endpoint import json_response
from dlcore.serve.errors import not_found
from dlcore.serve.paging import page
from dlcore.serve.record import record_of
from dlcore.serve.schemas.batches import Deleted, FileList, FileObject
from dlcore.serve.upload import read_upload, save_upload


class FilesEndpoint:
    def __init__(self, ctx: ServerContext, runner: BatchRunner) -> None:
        self._ctx = ctx
        self._runner = runner

    async def upload(self, request: Request) -> Response:
        file, purpose = await read_upload(request, self._ctx.config.max_file_bytes)
        store = self._runner.store
        file_id, path = store.new_content_path()
        await save_upload(file, path)
        name = (file.filename or "upload")[:255]
        owner = record_of(request).key_name
        saved = await asyncio.to_thread(store.add_file, file_id, owner, name, purpose)
        return json_response(saved)

    async def list(self, request: Request) -> Response:
        files = await asyncio.to_thread(self._runner.store.list_files, record_of(request).key_name)
        purpose = request.query_params.get("purpose")
        chosen, more = page([f for f in files if purpose in (None, f.purpose)], request, 10_000)
        first, last = (chosen[0].id, chosen[-1].id) if chosen else (None, None)
        return json_response(FileList(data=chosen, first_id=first, last_id=last, has_more=more))

    async def get(self, request: Request) -> Response:
        return json_response(await self._file(request))

    async def content(self, request: Request) -> Response:
        file = await self._file(request)
        return FileResponse(
            self._runner.store.content_path(file.id), media_type="application/octet-stream"
        )

    async def delete(self, request: Request) -> Response:
        file = await self._file(request)
        owner = record_of(request).key_name
        await asyncio.to_thread(self._runner.store.delete_file, file.id, owner)
        return json_response(Deleted(id=file.id, object="file"))

    async def _file(self, request: Request) -> FileObject:
        file_id = request.path_params["file_id"]
        owner = record_of(request).key_name
        file = await asyncio.to_thread(self._runner.store.get_file, file_id, owner)
        if file is None:
            raise not_found(f"no file has the id {file_id!r}", "file_id")
        return file

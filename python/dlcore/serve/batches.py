"""/v1/batches: create, list, get, cancel."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request
from starlette.responses import Response

from dlcore.serve.batch_runner import BatchRunner
from dlcore.serve.context import ServerContext
from dlcore.serve.endpoint import json_body, json_response
from dlcore.serve.errors import bad_request, not_found
from dlcore.serve.paging import page
from dlcore.serve.record import new_id, record_of
from dlcore.serve.schemas.batches import Batch, BatchList, BatchRequest, RequestCounts

_WINDOW_S = 24 * 3600


class BatchesEndpoint:
    def __init__(self, ctx: ServerContext, runner: BatchRunner) -> None:
        self._ctx = ctx
        self._runner = runner

    async def create(self, request: Request) -> Response:
        body = await json_body(self._ctx, request, BatchRequest)
        owner, store = record_of(request).key_name, self._runner.store
        if await asyncio.to_thread(store.get_file, body.input_file_id, owner) is None:
            raise bad_request(
                f"input_file_id: no file has the id {body.input_file_id!r}", "input_file_id"
            )
        now = int(time.time())
        batch = Batch(
            id=f"batch_{new_id()}",
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            created_at=now,
            expires_at=now + _WINDOW_S,
            request_counts=RequestCounts(),
            metadata=body.metadata,
        )
        await asyncio.to_thread(store.put_batch, batch, owner)
        answer = json_response(batch)
        self._runner.start(batch, owner)
        return answer

    async def list(self, request: Request) -> Response:
        owner = record_of(request).key_name
        batches = await asyncio.to_thread(self._runner.store.list_batches, owner)
        chosen, more = page([self._runner.live(b.id) or b for b in batches], request, 20)
        first, last = (chosen[0].id, chosen[-1].id) if chosen else (None, None)
        return json_response(BatchList(data=chosen, first_id=first, last_id=last, has_more=more))

    async def get(self, request: Request) -> Response:
        return json_response(await self._batch(request))

    async def cancel(self, request: Request) -> Response:
        batch = await self._batch(request)
        self._runner.cancel(batch, record_of(request).key_name)
        return json_response(batch)

    async def _batch(self, request: Request) -> Batch:
        batch_id = request.path_params["batch_id"]
        owner = record_of(request).key_name
        stored = await asyncio.to_thread(self._runner.store.get_batch, batch_id, owner)
        if stored is None:
            raise not_found(f"no batch has the id {batch_id!r}", "batch_id")
        live = self._runner.live(batch_id)
        if live is None and stored.status in ("in_progress", "cancelling"):
            await asyncio.to_thread(self._count, stored)
        return live or stored

    def _count(self, batch: Batch) -> None:
        """Another process runs it: its results tell how far it is."""
        done = self._runner.store.lines_done(batch.id)
        batch.request_counts.completed = sum(done.values())
        batch.request_counts.failed = len(done) - sum(done.values())

"""Runs batch jobs beside the live requests: lower priority, bounded, resumed after a restart."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from pathlib import Path
from typing import IO

import msgspec
from starlette.types import ASGIApp

from dlcore.serve.batch_input import read_batch_input
from dlcore.serve.drain import Drain
from dlcore.serve.errors import ApiError, unavailable
from dlcore.serve.internal import call_route
from dlcore.serve.job_store import FINAL, JobStore
from dlcore.serve.record import new_id
from dlcore.serve.schemas.batches import Batch, BatchErrors, BatchLine, LineResponse, LineResult

logger = logging.getLogger("dlcore.serve")

PRIORITY = 100  # larger is later: live requests go first
_LOOK_EVERY_S = 1.0  # for a cancel that another process was asked for


class BatchRunner:
    """One task per job; all share `max_concurrent` running lines. Event-loop thread only."""

    def __init__(self, app: ASGIApp, drain: Drain, folder: Path, max_concurrent: int) -> None:
        self._app = app
        self._drain = drain
        self._folder = folder
        self._slots = asyncio.Semaphore(max_concurrent)
        self._store: JobStore | None = None
        self._live: dict[str, Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def store(self) -> JobStore:
        """Made when first needed: a server without batches leaves no files behind."""
        if self._store is None:
            try:
                self._store = JobStore(self._folder)
            except (OSError, sqlite3.Error) as exc:
                raise unavailable(f"--data-dir {self._folder} cannot be used: {exc}") from None
        return self._store

    def resume(self) -> None:
        """Goes on with what an earlier run of the server left unfinished."""
        if not JobStore.exists(self._folder):
            return
        try:
            self._resume_all()
        except ApiError as exc:
            logger.warning("batches are not resumed: %s", exc)

    def _resume_all(self) -> None:
        for batch, owner in self.store.active_batches():
            logger.info("resuming %s (%s)", batch.id, batch.status)
            self.start(batch, owner)

    async def stop(self) -> None:
        """Leaves unfinished jobs for the next run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._store is not None:
            self._store.close()

    def start(self, batch: Batch, owner: str) -> None:
        """Does nothing where another process runs the job already."""
        claim = self.store.claim(batch.id)
        if claim is None:
            return
        self._live[batch.id] = batch
        task = asyncio.create_task(self._run(batch, owner, claim))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def live(self, batch_id: str) -> Batch | None:
        """The running job itself, so that its counts are those of this moment."""
        return self._live.get(batch_id)

    def cancel(self, batch: Batch, owner: str) -> None:
        if batch.status in FINAL:
            return
        self.store.request_cancel(batch.id)
        _mark_cancelling(batch)
        if batch.id not in self._live:
            self.start(batch, owner)  # unless another process runs it, which will see it

    async def _run(self, batch: Batch, owner: str, claim: IO[str]) -> None:
        try:
            lines = await self._validate(batch, owner)
            if lines:
                await self._run_lines(batch, owner, lines)
                if not self._drain.draining or _all_done(batch):
                    await self._finish(batch, owner)
        except Exception as exc:
            logger.error("%s failed", batch.id, exc_info=exc)
            await self._fail(batch, owner, f"the server could not run it: {exc}")
        finally:
            self._live.pop(batch.id, None)
            claim.close()

    async def _validate(self, batch: Batch, owner: str) -> list[BatchLine]:
        path = self.store.content_path(batch.input_file_id)
        lines, errors = await asyncio.to_thread(read_batch_input, path, batch.endpoint)
        if errors:
            batch.errors = BatchErrors(data=errors)
            await self._fail(batch, owner, "")
            return []
        done = await asyncio.to_thread(self.store.lines_done, batch.id)
        counts = batch.request_counts
        counts.total, counts.completed = len(lines), sum(done.values())
        counts.failed = len(done) - counts.completed
        if batch.status == "validating":
            batch.status = "in_progress"
            batch.in_progress_at = int(time.time())
        await asyncio.to_thread(self.store.put_batch, batch, owner)
        return lines

    async def _run_lines(self, batch: Batch, owner: str, lines: list[BatchLine]) -> None:
        done = await asyncio.to_thread(self.store.lines_done, batch.id)
        running: set[asyncio.Task[None]] = set()
        looked = 0.0
        try:
            for number, line in enumerate(lines):
                if number in done:
                    continue
                await self._slots.acquire()
                if time.monotonic() - looked > _LOOK_EVERY_S:
                    looked = time.monotonic()
                    if await asyncio.to_thread(self.store.cancel_requested, batch.id):
                        _mark_cancelling(batch)
                if self._drain.draining or batch.status != "in_progress" or _too_late(batch):
                    self._slots.release()
                    break
                task = asyncio.create_task(self._run_line(batch, owner, number, line))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()

    async def _run_line(self, batch: Batch, owner: str, number: int, line: BatchLine) -> None:
        self._drain.enter()
        try:
            body = {"priority": PRIORITY, **line.body}
            status, request_id, answer = await call_route(self._app, line.url, body, owner)
            ok = status == 200
            response = LineResponse(
                status_code=status, request_id=request_id, body=msgspec.Raw(answer)
            )
            result = LineResult(
                id=f"batch_req_{new_id()}", custom_id=line.custom_id, response=response
            )
            data = msgspec.json.encode(result)
            await asyncio.to_thread(self.store.add_result, batch.id, number, ok=ok, result=data)
            batch.request_counts.completed += ok
            batch.request_counts.failed += not ok
        finally:
            self._drain.leave()
            self._slots.release()

    async def _finish(self, batch: Batch, owner: str) -> None:
        end = "cancelled" if batch.status == "cancelling" else "completed"
        if end == "completed" and not _all_done(batch):
            end = "expired"
        batch.status = "finalizing"
        batch.finalizing_at = int(time.time())
        await asyncio.to_thread(self.store.put_batch, batch, owner)
        await asyncio.to_thread(self._write_files, batch, owner)
        batch.status = end
        setattr(batch, f"{end}_at", int(time.time()))
        await asyncio.to_thread(self.store.put_batch, batch, owner)
        await asyncio.to_thread(self.store.forget_results, batch.id)

    def _write_files(self, batch: Batch, owner: str) -> None:
        for ok, name in ((True, "output"), (False, "error")):
            filename = f"{batch.id}_{name}.jsonl"
            file_id = self.store.write_results(batch.id, owner, ok=ok, filename=filename)
            setattr(batch, f"{name}_file_id", file_id)

    async def _fail(self, batch: Batch, owner: str, why: str) -> None:
        batch.status = "failed"
        batch.failed_at = int(time.time())
        if why:
            batch.metadata = {**(batch.metadata or {}), "error": why}
        await asyncio.to_thread(self.store.put_batch, batch, owner)


def _mark_cancelling(batch: Batch) -> None:
    if batch.status != "cancelling":
        batch.status = "cancelling"
        batch.cancelling_at = int(time.time())


def _all_done(batch: Batch) -> bool:
    counts = batch.request_counts
    return counts.completed + counts.failed == counts.total


def _too_late(batch: Batch) -> bool:
    return time.time() > batch.expires_at

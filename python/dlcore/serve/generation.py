"""The engine requests behind one HTTP request: start them, watch them, end them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from dlcore.engine_client import EngineClient
from dlcore.outputs import RequestOutput
from dlcore.resumption import ResumeTokenIds
from dlcore.sampling_params import SamplingParams
from dlcore.serve.errors import ApiError, client_gone
from dlcore.serve.lifetime import Lifetime
from dlcore.serve.metrics import Metrics
from dlcore.serve.observe import Observer
from dlcore.serve.prompt import Prompt
from dlcore.serve.record import RequestRecord, new_id, record_of

Outputs = AsyncGenerator[tuple[int, RequestOutput], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One engine request. Its id is ours alone: two clients can never share one."""

    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    resume_token_ids: ResumeTokenIds | None = None
    kv_source: Any = None  # where another node keeps the prompt's KV (KvPeer.source)
    hold_kv: bool = False  # for another node to fetch

    def began_elsewhere(self, index: int) -> bool:
        """True when the client has the beginning of completion `index` from another server."""
        return self.resume_token_ids is not None and self.resume_token_ids[index] != []

    @property
    def finished_elsewhere(self) -> bool:
        resume = self.resume_token_ids
        return resume is not None and all(tokens is None for tokens in resume)


class Generation:
    """Runs jobs and yields `(job index, output)` until all have finished.

    `abort` may be called at any time, from another task.
    """

    def __init__(
        self, engine: EngineClient, metrics: Metrics, record: RequestRecord, jobs: Sequence[Job]
    ) -> None:
        self.jobs = jobs
        self.aborted = False
        self._engine = engine
        self._ids = [f"{record.request_id}-{new_id()[:12]}" for _ in jobs]
        self._observers = [Observer(metrics, record, job.params.n) for job in jobs]

    async def abort(self) -> None:
        self.aborted = True
        for request_id in self._ids:
            await self._engine.abort(request_id)

    def outputs(self) -> Outputs:
        """Close it to end the engine requests."""
        return self._one(0) if len(self.jobs) == 1 else self._merged()

    async def _one(self, index: int) -> Outputs:
        job, observer = self.jobs[index], self._observers[index]
        if job.finished_elsewhere:
            return
        stream = self._engine.generate(
            job.prompt.token_ids,
            job.params,
            self._ids[index],
            priority=job.priority,
            cache_salt=job.cache_salt,
            resume_token_ids=job.resume_token_ids,
            kv_source=job.kv_source,
            hold_kv=job.hold_kv,
        )
        try:
            async for output in stream:
                if not output.resumed:
                    observer.on_output(output)
                if output.error is not None:
                    raise ApiError(500, f"generation failed: {output.error}", kind="engine_error")
                yield index, output
                if self.aborted:
                    return
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    async def _merged(self) -> Outputs:
        queue: asyncio.Queue[tuple[int, RequestOutput] | Exception | None] = asyncio.Queue()

        async def pump(index: int) -> None:
            try:
                async with aclosing(self._one(index)) as stream:
                    async for item in stream:
                        queue.put_nowait(item)
                queue.put_nowait(None)
            except Exception as exc:
                queue.put_nowait(exc)

        tasks = [asyncio.create_task(pump(i)) for i in range(len(self.jobs))]
        try:
            running = len(tasks)
            while running:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            await _cancel_all(tasks)


async def run_to_end(
    generation: Generation,
    request: Request,
    timeout_s: float,
    on_output: Callable[[int, RequestOutput], object],
) -> None:
    """Feeds every output to `on_output`. Raises ApiError 499 when the client went away."""
    record = record_of(request)
    lifetime = Lifetime(request.receive, record, generation.abort, timeout_s)
    async with lifetime, aclosing(generation.outputs()) as outputs:
        async for index, output in outputs:
            on_output(index, output)
    if lifetime.gone:
        raise client_gone()
    if lifetime.expired:
        raise TimeoutError


async def _cancel_all(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task

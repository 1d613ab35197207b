"""Active checks: one small task per node."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from dlcore.router.backend import Backend, State
from dlcore.router.pool import BackendPool

ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError)


class HealthChecker:
    """Asks each node for /health and, when it comes up, what it serves."""

    def __init__(
        self,
        pool: BackendPool,
        session: aiohttp.ClientSession,
        *,
        interval_s: float,
        timeout_s: float,
        api_key: str | None = None,
    ) -> None:
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._pool = pool
        self._session = session
        self._interval_s = interval_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, backend: Backend) -> None:
        if backend.url not in self._tasks:
            self._tasks[backend.url] = asyncio.create_task(self._loop(backend))

    def unwatch(self, url: str) -> None:
        task = self._tasks.pop(url, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def check(self, backend: Backend) -> None:
        """One check, its outcome told to the pool."""
        try:
            async with self._session.get(f"{backend.url}/health", timeout=self._timeout) as reply:
                if reply.status != 200:
                    raise ValueError(f"/health answered {reply.status}")
            if backend.state is not State.UP:
                await self._learn(backend)
        except ERRORS as error:
            self._pool.failed(backend, f"health check: {error or type(error).__name__}")
        else:
            self._pool.succeeded(backend)

    async def _loop(self, backend: Backend) -> None:
        while True:
            await self.check(backend)
            await asyncio.sleep(self._interval_s)

    async def _learn(self, backend: Backend) -> None:
        models = (await self._json(backend, "/v1/models")).get("data", [])
        backend.models = tuple(str(model["id"]) for model in models)
        # Other engines have no resumption: their streams fail over only before the first token.
        backend.resumable = any(model.get("owned_by") == "dlcore" for model in models)

    async def _json(self, backend: Backend, path: str) -> dict[str, Any]:
        url = backend.url + path
        async with self._session.get(url, headers=self._headers, timeout=self._timeout) as reply:
            if reply.status != 200:
                raise ValueError(f"{path} answered {reply.status}")
            body = await reply.json(content_type=None)
        if not isinstance(body, dict):
            raise ValueError(f"{path} did not answer an object")
        return body

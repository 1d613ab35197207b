"""Keeps a serving node registered where `--ctrl` asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dlcore.control.registration import Registration, new_member
from dlcore.serve.config import ServeConfig
from dlcore.serve.drain import Drain
from dlcore.serve.server import DrainingServer

STARTED_POLL_S = 0.05


@asynccontextmanager
async def membership(
    config: ServeConfig, url: str, server: DrainingServer, drain: Drain
) -> AsyncIterator[None]:
    """Registered from the moment the server is ready until it drains or the context ends."""
    if config.ctrl is None:
        yield
        return
    member = new_member(config.advertise_url or url, config.role, config.heartbeat_interval_s)
    registration = Registration(config.ctrl, config.scope, member)

    async def keep() -> None:
        while not server.started:
            await asyncio.sleep(STARTED_POLL_S)
        await registration.keep(drain.begun)

    task = asyncio.create_task(keep())
    try:
        yield
    finally:
        drain.begun.set()
        if server.started:
            await asyncio.wait({task}, timeout=2.0)
        task.cancel()

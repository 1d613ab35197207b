"""Lifetime: what is left of it after its request."""

from __future__ import annotations

import asyncio
import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

from dlcore.serve.lifetime import Lifetime
from dlcore.serve.record import RequestRecord


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}


async def abort() -> None:
    raise AssertionError("the client is still there")


async def ended() -> weakref.ref[Lifetime]:
    """Of a request whose client stayed to its end."""
    record = cast(RequestRecord, SimpleNamespace(disconnected=False))
    lifetime = Lifetime(never, record, abort, 0.0)
    async with lifetime:
        await asyncio.sleep(0.01)  # the watcher waits
    await asyncio.sleep(0.01)  # and is cancelled
    return weakref.ref(lifetime)


def test_it_goes_with_its_request_and_not_when_cycles_are_collected() -> None:
    gc.disable()
    try:
        assert asyncio.run(ended())() is None
    finally:
        gc.enable()

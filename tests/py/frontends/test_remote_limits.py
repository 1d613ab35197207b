"""Limits of a key hold for all front ends together, whatever becomes of one of them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from frontends.test_frontends import Served, core_and_frontend, until

from dlcore.frontends.core_server import CoreServer
from dlcore.frontends.messages import id_prefix
from dlcore.frontends.remote_core import RemoteCore
from dlcore.frontends.remote_limits import RemoteLimits, SharedLimits
from dlcore.serve.limits import Limits

LONG = {"prompt": [1, 2, 3], "max_tokens": 1500, "ignore_eos": True, "stream": True}


@contextmanager
def serving(*flags: str) -> Iterator[Served]:
    server = Served(*flags)
    try:
        yield server
    finally:
        code = server.end()
    assert code == 0


def test_a_rate_is_counted_over_all_front_ends() -> None:
    with serving("--load-format", "null", "--requests-per-minute", "3") as server:
        codes = Counter(server.ask(3).status_code for _ in range(16))
    # The last may have been a second or two after the first: at most one more by then.
    assert codes[200] in (3, 4)
    assert codes[429] == 16 - codes[200]


def test_one_at_once_is_one_over_all_front_ends_until_it_ends_or_its_front_end_dies() -> None:
    with serving("--max-concurrent-requests", "1") as server:
        url = f"{server.base}/v1/completions"
        with httpx.stream("POST", url, json=LONG, timeout=60) as answer:
            lines = answer.iter_lines()  # dropped, it would end the stream
            next(lines)
            assert {server.ask(3).status_code for _ in range(8)} == {429}
        until(lambda: server.ask(3).status_code == 200)  # the client left
        with httpx.stream("POST", url, json=LONG, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            for child in server.children():
                os.kill(child, signal.SIGKILL)
            until(lambda: _status(server) == 200, 30)


def test_what_one_front_end_passes_on_to_another_counts_once() -> None:
    flags = ("--load-format", "null", "--api-key", "k", "--max-concurrent-requests", "1")
    with serving(*flags) as server:
        url, key = f"{server.base}/v1/responses", {"x-api-key": "k"}
        made = httpx.post(url, json={"input": "a"}, headers=key, timeout=60).json()["id"]
        for _ in range(16):
            time.sleep(0.1)  # the place of the one before is given back just behind its answer
            body = {"input": "b", "previous_response_id": made}
            assert httpx.post(url, json=body, headers=key, timeout=60).status_code == 200


def _status(server: Served) -> int:
    try:
        return server.ask(3).status_code
    except httpx.TransportError:  # its front end has just died
        return 0


def test_places_taken_and_given_back_at_random_add_up() -> None:
    rng = random.Random(0)
    limits = Limits(0, 5)
    shared = SharedLimits(limits)
    held: Counter[tuple[int, str]] = Counter()
    incarnations = [0, 0, 0]
    for _ in range(20_000):
        worker, name = rng.randrange(3), rng.choice("ab")
        holder = id_prefix(worker, incarnations[worker])
        of_name = sum(count for (_, key), count in held.items() if key == name)
        if rng.random() < 0.5:
            admitted = shared.take(holder, name) is None
            assert admitted == (of_name < 5)
            held[holder, name] += admitted
        elif held[holder, name] and rng.random() < 0.95:
            shared.give_back(holder, name)
            held[holder, name] -= 1
        elif rng.random() < 0.05:
            shared.forget(holder)
            incarnations[worker] += 1
            held = Counter({key: count for key, count in held.items() if key[0] != holder})
            # The last words of the dead one change nothing.
            assert shared.take(holder, name) is not None
            shared.give_back(holder, name)


@pytest.fixture
def pair() -> Iterator[tuple[CoreServer, RemoteCore]]:
    with core_and_frontend(Limits(0, 1)) as both:
        yield both


async def test_a_place_granted_to_a_client_that_left_is_free_again(
    pair: tuple[CoreServer, RemoteCore],
) -> None:
    limits = RemoteLimits(pair[1], enabled=True)
    for _ in range(20):
        asking = asyncio.create_task(limits.take("key"))
        await asyncio.sleep(0)  # asked, not yet answered
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    async with asyncio.timeout(10):
        while await limits.take("key") is not None:
            await asyncio.sleep(0.01)
    assert await limits.take("key") is not None
    limits.give_back("key")
    assert await limits.take("key") is None


async def test_an_answer_waits_for_no_output(pair: tuple[CoreServer, RemoteCore]) -> None:
    """An idle engine has nothing to hand out; the one who hands out must still be woken."""
    limits = RemoteLimits(pair[1], enabled=True)
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(20):
        began = loop.time()
        assert await limits.take("key") is None
        waits.append(loop.time() - began)
        limits.give_back("key")
    assert sorted(waits)[2] < 0.02  # the poll lasts 0.05 s

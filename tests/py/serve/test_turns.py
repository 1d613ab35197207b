"""Turns: a crowd is let in a few a round of the event loop, in order, and nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from dlcore.serve.turns import Turns


class Rounds:
    """Counts the event loop's rounds."""

    def __init__(self) -> None:
        self.now = 0
        self._tick()

    def _tick(self) -> None:
        self.now += 1
        self._handle = asyncio.get_running_loop().call_soon(self._tick)

    def stop(self) -> None:
        self._handle.cancel()


async def crowd(turns: Turns, size: int) -> list[tuple[int, int]]:
    """(who, round) of everyone's turn, in the order they came."""
    rounds, seen = Rounds(), []

    async def one(who: int) -> None:
        await turns.next()
        seen.append((who, rounds.now))

    await asyncio.gather(*(one(who) for who in range(size)))
    rounds.stop()
    return seen


@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_a_crowd_begins_a_few_a_round_and_in_order(size: int) -> None:
    async def run() -> None:
        turns = Turns(3)
        for _ in range(2):  # the second crowd finds it as the first did
            seen = await crowd(turns, size)
            assert [who for who, _ in seen] == list(range(size))
            assert max(Counter(when for _, when in seen).values()) <= 3
            assert seen[-1][1] - seen[0][1] <= size

    asyncio.run(run())


def test_who_comes_later_does_not_overtake() -> None:
    async def run() -> None:
        turns, seen = Turns(1), []

        async def one(who: int) -> None:
            await turns.next()
            seen.append(who)

        tasks = []
        for who in range(20):
            tasks.append(asyncio.create_task(one(who)))
            if who % 3 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert seen == list(range(20))

    asyncio.run(run())


def test_a_cancelled_request_uses_no_turn() -> None:
    async def run() -> None:
        turns = Turns(1)
        tasks = [asyncio.create_task(turns.next()) for _ in range(5)]
        await asyncio.sleep(0)
        for task in tasks[1:4]:
            task.cancel()
        rounds = Rounds()
        await tasks[4]
        assert rounds.now <= 4
        rounds.stop()
        assert tasks[0].done()

    asyncio.run(run())

"""Membership through dlslime-ctrl: the real one where it is installed, and one that answers
like it everywhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from control.fake_ctrl import FakeCtrl
from control.real_ctrl import RealCtrl, is_installed

from dlcore.control.ctrl_client import CtrlClient, CtrlError
from dlcore.control.member import Member, member_of
from dlcore.control.registration import Registration, new_member
from dlcore.router.backend import Role
from dlcore.router.discovery import Change, CtrlDiscovery, Join, Leave

Ctrl = FakeCtrl | RealCtrl
BEAT_S = 1.5  # a third of it may be lost to a busy machine
URL = "http://127.0.0.1:6001"


@pytest.fixture(params=["fake", "real"])
def ctrl(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ctrl]:
    if request.param == "real" and not is_installed():
        pytest.skip("dlslime-ctrl and redis-server are not installed")
    service: Ctrl = FakeCtrl() if request.param == "fake" else RealCtrl(tmp_path)
    service.start()
    try:
        yield service
    finally:
        service.stop()


@asynccontextmanager
async def client_of(ctrl: Ctrl, scope: str = "s") -> AsyncIterator[CtrlClient]:
    async with aiohttp.ClientSession() as session:
        yield CtrlClient(session, ctrl.url, scope)


class Watch:
    """Collects a discovery's changes, with their times."""

    def __init__(self, client: CtrlClient) -> None:
        self.changes: list[tuple[float, Change]] = []
        self._discovery = CtrlDiscovery(client, heartbeat_interval_s=BEAT_S)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for change in self._discovery.changes():
            self.changes.append((time.monotonic(), change))

    @property
    def kinds(self) -> list[Change]:
        return [change for _, change in self.changes]


@asynccontextmanager
async def watching(ctrl: Ctrl) -> AsyncIterator[Watch]:
    async with client_of(ctrl) as client:
        watch = Watch(client)
        try:
            yield watch
        finally:
            watch.task.cancel()


@asynccontextmanager
async def registered(ctrl: Ctrl, url: str = URL) -> AsyncIterator[asyncio.Task[None]]:
    """Cancel the task to have the node die without a word."""
    over = asyncio.Event()
    task = asyncio.create_task(
        Registration(ctrl.url, "s", new_member(url, "hybrid", BEAT_S)).keep(over)
    )
    try:
        yield task
    finally:
        over.set()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return condition()


async def test_what_is_registered_is_listed_until_it_is_unregistered(ctrl: Ctrl) -> None:
    member = new_member(URL, "hybrid", 5.0)
    async with client_of(ctrl) as client, client_of(ctrl, "other") as other:
        await client.register(member)
        assert await client.members() == [member]
        assert await other.members() == []
        await client.unregister(member)
        await client.unregister(member)
        assert await client.members() == []


async def test_a_second_registration_replaces_the_first(ctrl: Ctrl) -> None:
    first, second = new_member(URL, "hybrid", 5.0), new_member(URL, "decode", 2.0)
    async with client_of(ctrl) as client:
        await client.register(first)
        await client.register(second)
        assert await client.members() == [second]


async def test_a_node_joins_and_a_silent_one_is_gone_within_two_heartbeats(ctrl: Ctrl) -> None:
    async with watching(ctrl) as watch, registered(ctrl) as node:
        assert await until(lambda: watch.kinds == [Join(URL, Role.HYBRID)])
        await asyncio.sleep(3 * BEAT_S)
        assert len(watch.kinds) == 1, "a node that beats stays"
        node.cancel()
        died = time.monotonic()
        assert await until(lambda: watch.kinds[1:] == [Leave(URL)])
        slack = BEAT_S / 3
        assert watch.changes[1][0] - died < 2 * BEAT_S + slack
        async with registered(ctrl):
            assert await until(lambda: watch.kinds[2:] == [Join(URL, Role.HYBRID)])


async def test_a_lost_redis_takes_no_node_away_and_learns_of_all_again(ctrl: Ctrl) -> None:
    async with watching(ctrl) as watch, registered(ctrl):
        assert await until(lambda: len(watch.kinds) == 1)
        ctrl.stop_redis()
        await asyncio.sleep(4 * BEAT_S)
        ctrl.start_redis()
        async with client_of(ctrl) as client:

            async def listed() -> bool:
                with suppress(CtrlError):
                    return [m.url for m in await client.members()] == [URL]
                return False

            deadline = time.monotonic() + 10
            while not await listed() and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            assert await listed()
        await asyncio.sleep(3 * BEAT_S)
        assert watch.kinds == [Join(URL, Role.HYBRID)]


async def test_without_redis_the_error_names_the_service(ctrl: Ctrl) -> None:
    ctrl.stop_redis()
    async with client_of(ctrl) as client:
        with pytest.raises(CtrlError, match=ctrl.url):
            await client.members()


async def test_without_the_service_the_error_names_it() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(CtrlError, match=r"127\.0\.0\.1:9/register"):
            await CtrlClient(session, "http://127.0.0.1:9", "s").register(
                new_member(URL, "hybrid", 5.0)
            )


def test_entities_of_others_are_no_members() -> None:
    good = new_member(URL, "hybrid", 5.0)
    entity = good.entity("s")
    assert member_of(entity) == good
    for spoiled in (
        {},
        {**entity, "metadata": {}},
        {**entity, "metadata": None},
        {**entity, "metadata": {**entity["metadata"], "url": "file:///etc/passwd"}},
        {**entity, "metadata": {**entity["metadata"], "url": "http://[::1"}},
        {**entity, "metadata": {**entity["metadata"], "url": "http://node:99999"}},
        {**entity, "metadata": {**entity["metadata"], "beat": "x"}},
        {**entity, "metadata": {**entity["metadata"], "beat": float("inf")}},
        {**entity, "metadata": {**entity["metadata"], "heartbeat_interval_s": -1}},
    ):
        assert member_of(spoiled) is None


class Script:
    """Answers of a membership service, one a poll; None = it does not answer."""

    def __init__(self, *answers: list[Member] | None) -> None:
        self._answers = list(answers)

    async def members(self) -> list[Member]:
        if not self._answers:
            raise asyncio.CancelledError
        answer = self._answers.pop(0)
        if answer is None:
            raise CtrlError("down")
        return answer


async def changes_of(*answers: list[Member] | None, poll_s: float = 1.0) -> list[Change]:
    clock = [0.0]

    async def sleep(_: float) -> None:
        clock[0] += poll_s

    discovery = CtrlDiscovery(
        Script(*answers), heartbeat_interval_s=4.0, now=lambda: clock[0], sleep=sleep
    )
    found: list[Change] = []
    with suppress(asyncio.CancelledError):
        async for change in discovery.changes():
            found.append(change)
    return found


def beat(number: int, incarnation: str = "a") -> list[Member]:
    return [
        Member(
            url=URL, kind="hybrid", incarnation=incarnation, heartbeat_interval_s=4.0, beat=number
        )
    ]


JOIN, LEAVE = Join(URL, Role.HYBRID), Leave(URL)


async def test_an_entry_that_stays_but_stands_still_is_gone() -> None:
    assert await changes_of(*[beat(1)] * 9) == [JOIN, LEAVE]


async def test_a_beat_that_moves_again_is_back() -> None:
    assert await changes_of(*[beat(1)] * 9, beat(2)) == [JOIN, LEAVE, JOIN]


async def test_a_restarted_node_joins_anew() -> None:
    assert await changes_of(beat(5), beat(1, "b")) == [JOIN, JOIN]


async def test_time_without_answers_does_not_count() -> None:
    assert await changes_of(beat(1), *[None] * 50, beat(1), beat(1)) == [JOIN]
    assert await changes_of(beat(1), *[None] * 50, [], [], beat(2)) == [JOIN]

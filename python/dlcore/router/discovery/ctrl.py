"""Nodes that register with dlslime-ctrl.

A node is gone when its beat stood still for one and a half of its heartbeat intervals, so its
loss is noticed within two. The clock runs only while the service answers: a Redis that is down,
or that came back empty, takes no node away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from dlcore.control.ctrl_client import CtrlError
from dlcore.control.member import Member
from dlcore.router.backend import Role
from dlcore.router.discovery.base import Change, Join, Leave

logger = logging.getLogger("dlcore.router")

LOST_AFTER_BEATS = 1.5
POLLS_PER_BEAT = 4
ROLES = {role.value for role in Role}


class MemberSource(Protocol):
    async def members(self) -> list[Member]: ...


@dataclass(slots=True)
class _Known:
    member: Member
    moved_at: float  # when its beat was last seen to grow
    gone: bool = False


class CtrlDiscovery:
    def __init__(
        self,
        source: MemberSource,
        *,
        heartbeat_interval_s: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`heartbeat_interval_s` sets the pace of polling; each node says its own interval."""
        self._source = source
        self._poll_s = heartbeat_interval_s / POLLS_PER_BEAT
        self._now = now
        self._sleep = sleep
        self._known: dict[str, _Known] = {}
        self._answering = True

    async def changes(self) -> AsyncIterator[Change]:
        while True:
            try:
                members = await self._source.members()
            except CtrlError as error:
                self._lost_sight(error)
            else:
                for change in self._compare(members):
                    yield change
            await self._sleep(self._poll_s)

    def _lost_sight(self, error: CtrlError) -> None:
        if self._answering:
            logger.warning("membership is unknown, the nodes stay as they are: %s", error)
        self._answering = False

    def _compare(self, members: list[Member]) -> list[Change]:
        now = self._now()
        if not self._answering:
            logger.info("membership is known again")
            for known in self._known.values():
                known.moved_at = now
        self._answering = True
        changes = [change for member in members for change in self._see(member, now)]
        return changes + self._miss_silent(now, {member.url for member in members})

    def _see(self, member: Member, now: float) -> list[Change]:
        if member.kind not in ROLES:
            return []
        known = self._known.get(member.url)
        if known is None:
            self._known[member.url] = _Known(member, now)
            return [Join(member.url, Role(member.kind))]
        last, back = known.member, known.gone
        if (member.incarnation, member.beat) == (last.incarnation, last.beat):
            return []
        known.member, known.moved_at, known.gone = member, now, False
        is_new = member.incarnation != last.incarnation or member.kind != last.kind
        return [Join(member.url, Role(member.kind))] if is_new or back else []

    def _miss_silent(self, now: float, listed: set[str]) -> list[Change]:
        changes: list[Change] = []
        for url, known in list(self._known.items()):
            patience = LOST_AFTER_BEATS * known.member.heartbeat_interval_s
            if not known.gone and now - known.moved_at > patience:
                known.gone = True
                changes.append(Leave(url))
            if known.gone and url not in listed:
                del self._known[url]
        return changes

"""A node's place in the membership service, kept for as long as the node serves."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from dataclasses import replace

import aiohttp

from dlcore.control.ctrl_client import CtrlClient, CtrlError
from dlcore.control.member import Member

logger = logging.getLogger("dlcore.control")


def new_member(url: str, kind: str, heartbeat_interval_s: float) -> Member:
    """A member that nothing is known of yet."""
    return Member(
        url=url.rstrip("/"),
        kind=kind,
        incarnation=secrets.token_hex(8),
        heartbeat_interval_s=heartbeat_interval_s,
    )


class Registration:
    """Each heartbeat is a whole registration: a Redis that lost everything has it again."""

    def __init__(self, ctrl_url: str, scope: str, member: Member) -> None:
        self._ctrl_url = ctrl_url
        self._scope = scope
        self._member = member
        self._reachable = True

    async def keep(self, until: asyncio.Event) -> None:
        """Registers, beats, and unregisters once `until` is set."""
        async with aiohttp.ClientSession() as session:
            client = CtrlClient(session, self._ctrl_url, self._scope)
            while not until.is_set():
                await self._beat(client)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(until.wait(), self._member.heartbeat_interval_s)
            with suppress(CtrlError):
                await client.unregister(self._member)

    async def _beat(self, client: CtrlClient) -> None:
        self._member = replace(self._member, beat=self._member.beat + 1)
        try:
            await client.register(self._member)
        except CtrlError as error:
            if self._reachable:
                logger.warning("not registered, trying on: %s", error)
            self._reachable = False
            return
        if not self._reachable or self._member.beat == 1:
            logger.info("registered as %s (%s)", self._member.url, self._member.kind)
        self._reachable = True

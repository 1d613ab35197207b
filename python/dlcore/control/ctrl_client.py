"""dlslime-ctrl's HTTP API, as far as membership needs it."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from dlcore.control.member import ENTITY_TYPE, Member, member_of

TIMEOUT_S = 5.0


class CtrlError(Exception):
    """dlslime-ctrl, or the Redis behind it, does not answer as it should."""


class CtrlClient:
    """Event-loop thread only; the session is the caller's."""

    def __init__(self, session: aiohttp.ClientSession, url: str, scope: str) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._scope = scope

    async def register(self, member: Member) -> None:
        """Adds the member or replaces what was known of it. Raises CtrlError."""
        await self._post("/register", member.entity(self._scope))

    async def unregister(self, member: Member) -> None:
        """Unknown members are fine. Raises CtrlError."""
        body = {"entity_type": ENTITY_TYPE, "entity_id": member.entity_id, "scope": self._scope}
        await self._post("/unregister", body)

    async def members(self) -> list[Member]:
        """The scope's nodes. Raises CtrlError."""
        answer = await self._post("/list_entities", {"scope": self._scope})
        entities = answer.get("entities")
        if not isinstance(entities, list):
            raise CtrlError(f"{self._url}/list_entities: the answer has no list of entities")
        found = [member_of(entity) for entity in entities]
        return [member for member in found if member is not None]

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        where = self._url + path
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with self._session.post(where, json=body, timeout=timeout) as reply:
                answer = await reply.json(content_type=None)
                status = reply.status
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise CtrlError(f"{where}: {error or type(error).__name__}") from error
        if not isinstance(answer, dict) or status != 200 or answer.get("status") != "ok":
            raise CtrlError(f"{where} answered {status}: {str(answer)[:200]}")
        return answer

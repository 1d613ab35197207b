"""Turns: requests that come together begin a few at a time.

To read and submit a request takes the event loop about a millisecond. A crowd of them in one round
of the loop would be a gap in every answer that streams meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque

PER_ROUND = 4


class Turns:
    """First come, first served. Event loop only."""

    def __init__(self, per_round: int = PER_ROUND) -> None:
        self._per_round = per_round
        self._left = per_round
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._counting = False

    async def next(self) -> None:
        """Returns in a round of the event loop in which fewer than `per_round` others did."""
        loop = asyncio.get_running_loop()
        if not self._counting:
            self._counting = True
            loop.call_soon(self._new_round)
        if self._left:  # then nobody waits
            self._left -= 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _new_round(self) -> None:
        self._left = self._per_round
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its request may have been cancelled
                turn.set_result(None)
                self._left -= 1
        self._counting = self._left < self._per_round
        if self._counting:
            asyncio.get_running_loop().call_soon(self._new_round)

"""Responses kept for retrieval and for `previous_response_id`, within bounds."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from dlcore.serve.errors import not_found
from dlcore.serve.responses_run import ResponseRun
from dlcore.serve.schemas.chat import Message


@dataclass(slots=True)
class StoredResponse:
    """`owner`: the key that made it; others cannot see it. `history`: the turns before it."""

    run: ResponseRun
    owner: str
    history: list[Message]
    num_chars: int


class ResponseStore:
    """Forgets the least recently used beyond `max_count` or `max_chars` of conversation."""

    def __init__(self, max_count: int, max_chars: int) -> None:
        self._max_count = max_count
        self._max_chars = max_chars
        self._chars = 0
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, run: ResponseRun, owner: str, history: list[Message]) -> None:
        num_chars = sum(_size(message) for message in history)
        self._stored[run.id] = StoredResponse(run, owner, history, num_chars)
        self._chars += num_chars
        while len(self._stored) > self._max_count or self._chars > self._max_chars:
            oldest = next((k for k, v in self._stored.items() if v.run.ended), None)
            if oldest is None:
                return
            self._drop(oldest)

    def get(self, response_id: str, owner: str, param: str) -> StoredResponse:
        """Raises ApiError 404 for one that is unknown, forgotten, or somebody else's."""
        stored = self._stored.get(response_id)
        if stored is None or stored.owner != owner:
            raise not_found(f"no response has the id {response_id!r}", param)
        self._stored.move_to_end(response_id)
        return stored

    def delete(self, response_id: str, owner: str) -> None:
        self.get(response_id, owner, "response_id")
        self._drop(response_id)

    def _drop(self, response_id: str) -> None:
        self._chars -= self._stored.pop(response_id).num_chars


def _size(message: Message) -> int:
    content = message.content
    return 200 + (len(content) if isinstance(content, str) else 0)

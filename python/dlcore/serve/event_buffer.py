"""Named events on their way into the next write of a stream."""

from __future__ import annotations

import msgspec

from dlcore.named_event import named_event
from dlcore.outputs import CompletionOutput
from dlcore.serve.resume import token_ids_event


class EventBuffer:
    """Held by what makes events, and holds none of that: a cycle would outlive its request.

    Where the answer is not streamed its events go nowhere.
    """

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self._events: list[bytes] = []

    def append(self, name: str, event: object) -> None:
        if self._stream:
            self._events.append(named_event(name, msgspec.json.encode(event)))

    def append_token_ids(self, out: CompletionOutput) -> None:
        if self._stream:
            self._events.append(token_ids_event(out))

    def take(self) -> bytes:
        data = b"".join(self._events)
        self._events.clear()
        return data

"""Server-sent events, cut out of a byte stream."""

from __future__ import annotations

DONE = b"data: [DONE]"


class EventSplitter:
    """push() returns the whole events (without their blank line) that the bytes complete."""

    def __init__(self, max_event_bytes: int = 16 << 20) -> None:
        self._rest = b""
        self._max = max_event_bytes

    def push(self, data: bytes) -> list[bytes]:
        """Raises ValueError when one event grows past the bound."""
        # Joined before the line ends are unified: a cut may fall between \r and \n.
        *events, rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(rest) > self._max:
            raise ValueError("an event of the upstream server is too large")
        self._rest = rest
        return [event for event in events if event]


def data_of(event: bytes) -> bytes | None:
    """The JSON of a `data:` event; None for comments, [DONE] and named events."""
    if event == DONE or not event.startswith(b"data:"):
        return None
    return event[5:].strip()


def named_data_of(event: bytes) -> bytes | None:
    """The JSON of an event whose name, if any, is in its data too; None for comments."""
    lines = event.split(b"\n")
    data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    return b"\n".join(data) if data else None

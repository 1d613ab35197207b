"""Finds stop strings in streamed text.

Law: what is returned depends on the text alone, not on where tokens cut it. The stop
that completes first wins; of those completing together, the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScannedText:
    text: str  # safe to show
    stop: str | None = None  # the stop string met; nothing follows it


class StopStringScanner:
    """Holds back text that may be the start of a stop string. Not thread safe."""

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        """REQUIRES: no empty stop."""
        # Longest first: `min` below keeps the first of those that end together.
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._include = include_in_output
        self._held = ""

    def push(self, text: str) -> ScannedText:
        if not text:
            return ScannedText("")
        buffer = self._held + text
        found = self._first_match(buffer)
        if found is not None:
            start, stop = found
            self._held = ""
            end = start + len(stop) if self._include else start
            return ScannedText(buffer[:end], stop)
        keep = max(_open_prefix(buffer, stop) for stop in self._stops) if self._stops else 0
        cut = len(buffer) - keep
        self._held = buffer[cut:]
        return ScannedText(buffer[:cut])

    def flush(self) -> str:
        """The text held back, once no more can come."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, buffer: str) -> tuple[int, str] | None:
        matches = [(buffer.find(stop), stop) for stop in self._stops]
        found = [(at, stop) for at, stop in matches if at >= 0]
        return min(found, key=lambda m: m[0] + len(m[1])) if found else None


def _open_prefix(buffer: str, stop: str) -> int:
    """The length of the longest end of `buffer` that is a proper beginning of `stop`."""
    at = buffer.find(stop[0], max(0, len(buffer) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(buffer[at:]):
            return len(buffer) - at
        at = buffer.find(stop[0], at + 1)
    return 0

"""Text that arrives in pieces, read with a cursor."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Step = Generator[None, None, T]


class Reader:
    """The text so far and a cursor. Text before the cursor is forgotten, unless marked.

    The methods that return a Step yield while the answer depends on text yet to come, so
    what they read depends on the whole text alone and not on its pieces.
    """

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._marks = 0
        self._closed = False

    def append(self, text: str) -> None:
        if not self._marks and self._at:
            self._text, self._at = self._text[self._at :], 0
        self._text += text

    def close(self) -> None:
        self._closed = True

    def mark(self) -> int:
        """Keeps the text from here on until `release`; marks do not nest."""
        self._marks += 1
        return self._at

    def release(self, mark: int) -> str:
        """The text read since `mark`."""
        self._marks -= 1
        return self._text[mark : self._at]

    def rest(self) -> str:
        """What is here and not yet read. Does not wait."""
        return self._text[self._at :]

    def skip(self, count: int) -> None:
        self._at += count

    @property
    def ended(self) -> bool:
        """Everything was read and nothing will come."""
        return self._closed and self._at == len(self._text)

    def peek(self) -> Step[str]:
        """The next character, not read; "" at the end."""
        while self._at == len(self._text):
            if self._closed:
                return ""
            yield
        return self._text[self._at]

    def space(self) -> Step[str]:
        """Reads white space."""
        read = ""
        while True:
            rest = self.rest()
            found = rest[: len(rest) - len(rest.lstrip())]
            self._at += len(found)
            read += found
            if len(found) < len(rest) or self._closed:
                return read
            yield

    def accept(self, literal: str) -> Step[bool]:
        """Reads `literal` if it comes next."""
        while True:
            if self._text.startswith(literal, self._at):
                self._at += len(literal)
                return True
            rest = self._text[self._at : self._at + len(literal)]
            if self._closed or not literal.startswith(rest):
                return False
            yield

    def until(self, markers: Sequence[str], emit: Callable[[str], None]) -> Step[str]:
        """Passes text to `emit` up to the first of `markers`, which is read and returned.

        Returns "" when the text ends without one. No marker is a prefix of another.
        """
        while True:
            marker, at = self._first(markers)
            if marker:
                self._emit_to(at, emit)
                self._at += len(marker)
                return marker
            if self._closed:
                self._emit_to(len(self._text), emit)
                return ""
            self._emit_to(len(self._text) - self._held(markers), emit)
            yield

    def text_until(self, markers: Sequence[str]) -> Step[tuple[str, str]]:
        """The text up to the first of `markers`, and the marker."""
        pieces: list[str] = []
        marker = yield from self.until(markers, pieces.append)
        return "".join(pieces), marker

    def before(self, markers: Sequence[str], emit: Callable[[str], None]) -> Step[str]:
        """Like `until`, but leaves the marker to be read."""
        marker = yield from self.until(markers, emit)
        self._at -= len(marker)
        return marker

    def to_end(self, emit: Callable[[str], None]) -> Step[None]:
        """Passes all the rest to `emit`."""
        while True:
            self._emit_to(len(self._text), emit)
            if self._closed:
                return
            yield

    def _emit_to(self, end: int, emit: Callable[[str], None]) -> None:
        if end > self._at:
            emit(self._text[self._at : end])
            self._at = end

    def _first(self, markers: Sequence[str]) -> tuple[str, int]:
        best, best_at = "", len(self._text)
        for marker in markers:
            at = self._text.find(marker, self._at, best_at + len(marker))
            if 0 <= at < best_at:
                best, best_at = marker, at
        return best, best_at

    def _held(self, markers: Sequence[str]) -> int:
        """How many characters at the end may be the beginning of a marker."""
        available = len(self._text) - self._at
        for count in range(min(max(map(len, markers)) - 1, available), 0, -1):
            tail = self._text[-count:]
            if any(marker.startswith(tail) for marker in markers):
                return count
        return 0

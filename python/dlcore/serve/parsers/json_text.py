"""JSON read piece by piece, as it was written: its text is passed on, not re-encoded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from enum import Enum

from dlcore.serve.parsers.reader import Reader, Step

# What changes the scanner's state outside of a string: quotes, brackets, and any character
# that no JSON has there.
_OUTSIDE = re.compile(r"""["{}\[\]]|[^\s"{}\[\]A-Za-z0-9.,:+-]""")
_INSIDE = re.compile(r'["\\]')
_SCALAR_END = re.compile(r"[^A-Za-z0-9.+-]")
_CLOSER = {"{": "}", "[": "]"}


class Scan(Enum):
    MORE = 0  # the value goes on
    DONE = 1
    BROKEN = 2  # the next character cannot be part of a JSON value


class BracketScanner:
    """Finds the end of one object or array by its brackets, minding strings."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._in_string = False
        self._escaped = False

    def scan(self, text: str) -> tuple[int, Scan]:
        """Takes the next piece; how many of its characters belong to the value."""
        at = 0
        while at < len(text):
            if self._in_string:
                at = self._string(text, at)
                continue
            found = _OUTSIDE.search(text, at)
            if found is None:
                return len(text), Scan.MORE
            char, at = found[0], found.start()
            if char == '"':
                self._in_string = True
            elif char in _CLOSER:
                self._open.append(_CLOSER[char])
            elif not self._open or char != self._open.pop():
                return at, Scan.BROKEN
            at += 1
            if not self._open:
                return at, Scan.DONE
        return at, Scan.MORE

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _INSIDE.search(text, at)
        if found is None:
            return len(text)
        if found[0] == '"':
            self._in_string = False
        else:
            self._escaped = True
        return found.end()


def brackets(reader: Reader, emit: Callable[[str], None]) -> Step[bool]:
    """Passes on the object or array that begins here; False if it breaks off."""
    scanner = BracketScanner()
    while True:
        rest = reader.rest()
        count, state = scanner.scan(rest)
        if count:
            emit(rest[:count])
            reader.skip(count)
        if state is Scan.DONE:
            return True
        if state is Scan.BROKEN or reader.ended:
            return False
        yield


def string(reader: Reader) -> Step[str | None]:
    """Reads a string and its quotes, decoded; None if there is none or it breaks off."""
    if not (yield from reader.accept('"')):
        return None
    pieces: list[str] = []
    escaped = False
    while True:
        rest = reader.rest()
        at = 0
        while at < len(rest):
            if escaped:
                escaped, at = False, at + 1
                continue
            found = _INSIDE.search(rest, at)
            if found is None:
                break
            at = found.end()
            if found[0] == '"':
                pieces.append(rest[: at - 1])
                reader.skip(at)
                return _decoded("".join(pieces))
            escaped = True
        pieces.append(rest)
        reader.skip(len(rest))
        if reader.ended:
            return None
        yield


def scalar(reader: Reader) -> Step[str]:
    """Reads a number or a word such as true, as it stands; "" if there is none."""
    pieces: list[str] = []
    while True:
        rest = reader.rest()
        found = _SCALAR_END.search(rest)
        count = found.start() if found else len(rest)
        pieces.append(rest[:count])
        reader.skip(count)
        if found or reader.ended:
            return "".join(pieces)
        yield


def value(reader: Reader, emit: Callable[[str], None]) -> Step[bool]:
    """Passes on one value of any kind; False if it breaks off."""
    first = yield from reader.peek()
    if first in ("{", "["):
        return (yield from brackets(reader, emit))
    if first == '"':
        text = yield from string(reader)
        if text is not None:
            emit(json.dumps(text, ensure_ascii=False))
        return text is not None
    text = yield from scalar(reader)
    emit(text)
    return bool(text)


def wrapped_object(reader: Reader, emit: Callable[[str], None]) -> Step[bool]:
    """Passes on an object as it stands, and one written as a string without its quotes.

    False if it breaks off or is neither; what is no object or string stays to be read.
    """
    first = yield from reader.peek()
    if first in ("{", "["):
        return (yield from brackets(reader, emit))
    if first != '"':
        return False
    text = yield from string(reader)
    emit(text or "")
    return text is not None


def _decoded(body: str) -> str | None:
    try:
        decoded: str = json.loads(f'"{body}"', strict=False)
    except ValueError:
        return None
    return decoded

"""A tool call written as a JSON object: {"name": ..., "arguments": {...}}.

Read by the formats that put such an object between markers, and by plain JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dlcore.serve.parsers import json_text
from dlcore.serve.parsers.reader import Reader, Step

_NAME_KEYS = ("name",)
_ARGUMENT_KEYS = ("arguments", "parameters")


@dataclass(slots=True)
class CallSink:
    """Where a call's parts go. `start` is called once, with the name, before any arguments."""

    start: Callable[[str], None]
    arguments: Callable[[str], None]


@dataclass(slots=True)
class _Members:
    """What has been read of the object. Arguments wait here until the name is known."""

    sink: CallSink
    name: str | None = None
    waiting: list[str] = field(default_factory=list)
    has_arguments: bool = False

    def set_name(self, name: str) -> None:
        if self.name is not None:
            return
        self.name = name
        self.sink.start(name)
        for piece in self.waiting:
            self.sink.arguments(piece)
        self.waiting.clear()

    def add_arguments(self, text: str) -> None:
        if self.name is None:
            self.waiting.append(text)
        else:
            self.sink.arguments(text)


@dataclass(frozen=True, slots=True)
class CallResult:
    started: bool  # the name was found
    complete: bool  # the object was closed
    in_arguments: bool = False  # it broke off inside the arguments


def json_call(reader: Reader, sink: CallSink) -> Step[CallResult]:
    """Reads the object that begins here, as far as it is one."""
    members = _Members(sink)
    if not (yield from reader.accept("{")):
        return CallResult(False, False)
    while True:
        yield from reader.space()
        if (yield from reader.accept("}")):
            break
        key = yield from json_text.string(reader)
        yield from reader.space()
        if key is None or not (yield from reader.accept(":")):
            return CallResult(members.name is not None, False)
        yield from reader.space()
        if not (yield from _member(reader, key, members)):
            return CallResult(members.name is not None, False, key in _ARGUMENT_KEYS)
        yield from reader.space()
        yield from reader.accept(",")
    if members.name is not None and not members.has_arguments:
        sink.arguments("{}")
    return CallResult(members.name is not None, True)


def _member(reader: Reader, key: str, members: _Members) -> Step[bool]:
    if key in _NAME_KEYS:
        name = yield from json_text.string(reader)
        if name:
            members.set_name(name)
        return bool(name)
    if key in _ARGUMENT_KEYS and not members.has_arguments:
        members.has_arguments = True
        return (yield from _argument_value(reader, members))
    return (yield from json_text.value(reader, lambda _: None))


def _argument_value(reader: Reader, members: _Members) -> Step[bool]:
    first = yield from reader.peek()
    if first in ("{", "[", '"'):
        return (yield from json_text.wrapped_object(reader, members.add_arguments))
    text = yield from json_text.scalar(reader)
    members.add_arguments("{}" if text in ("", "null") else text)
    return bool(text)

"""The parser interface and the machinery its formats are written with.

A format is a generator that reads from a `Reader` and yields whenever it needs more text, so
it reads like the grammar it parses. Every primitive of Reader gives a result that depends on
the text alone, never on how it was cut into chunks; so does every parser made of them. That
is the law of this package: the streamed message equals the message parsed at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dlcore.serve.parsers.events import (
    ContentDelta,
    Event,
    ParsedMessage,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from dlcore.serve.parsers.reader import Reader

T = TypeVar("T")
# A step of a parser: yields to ask for more text, returns what it read.
Step = Generator[None, None, T]


class Parser(Protocol):
    """Text in, events out. One object parses one answer."""

    def push(self, text: str) -> list[Event]:
        """Takes the next piece of text (any size) and gives what it settles."""
        ...

    def finish(self) -> list[Event]:
        """The text is over: gives what was held back. Nothing may follow."""
        ...


def parse(parser: Parser, text: str) -> ParsedMessage:
    """The whole answer at once, by the same path as a stream."""
    message = ParsedMessage()
    message.add(parser.push(text))
    message.add(parser.finish())
    return message


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool parser may know of the request.

    `tools`: function name -> its JSON schema of parameters (may be empty).
    """

    tools: Mapping[str, Mapping[str, Any]]
    new_id: Callable[[], str] = new_call_id


class ToolParser:
    """Base of the tool call formats. A subclass implements `_run`.

    White space between content and calls is dropped; all other text outside of calls, and
    what looked like a call but is none, is content, unchanged.
    """

    # The format's markers are special tokens: detokenise with skip_special_tokens=False.
    needs_special_tokens = False

    def __init__(self, context: ToolContext) -> None:
        self._context = context
        self._reader = Reader()
        self._events: list[Event] = []
        self._space = ""  # white space that is content only if content follows
        self._after_call = False
        self._num_calls = 0
        self._run_steps = self._run()

    def push(self, text: str) -> list[Event]:
        self._reader.append(text)
        return self._advance()

    def finish(self) -> list[Event]:
        self._reader.close()
        events = self._advance()
        if self._space and not self._num_calls:
            events.append(ContentDelta(self._space))
        self._space = ""
        return events

    def _advance(self) -> list[Event]:
        next(self._run_steps, None)
        events, self._events = self._events, []
        return events

    def _run(self) -> Step[None]:
        raise NotImplementedError

    def _content(self, text: str) -> None:
        """Text outside of calls. Its trailing white space waits for what follows."""
        if self._after_call and not self._space:
            text = text.lstrip()
        body = text.rstrip()
        if not body:
            self._space += text
            return
        self._events.append(ContentDelta(self._space + body))
        self._space = text[len(body) :]
        self._after_call = False

    def _start_call(self, name: str, call_id: str | None = None) -> int:
        self._space = ""
        self._after_call = True
        index = self._num_calls
        self._num_calls += 1
        self._events.append(ToolCallStart(index, name, call_id or self._context.new_id()))
        return index

    def _arguments(self, index: int, text: str) -> None:
        if text:
            self._events.append(ToolCallArguments(index, text))

    def _end_call(self, index: int) -> None:
        self._events.append(ToolCallEnd(index))

    def _until_call(self, markers: Sequence[str]) -> Step[str]:
        """Passes content on up to the first of `markers`; "" at the end of the text."""
        return (yield from self._reader.until(markers, self._content))

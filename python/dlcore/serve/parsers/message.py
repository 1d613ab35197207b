"""The parser of one answer: reasoning first, tool calls in what follows it."""

from __future__ import annotations

from dlcore.serve.parsers.base import ToolParser
from dlcore.serve.parsers.events import ContentDelta, Event
from dlcore.serve.parsers.think import ThinkParser


class MessageParser:
    """Chains a reasoning and a tool parser; either may be missing.

    `max_calls` bounds the calls that are reported (parallel_tool_calls=false: 1).
    """

    def __init__(
        self, think: ThinkParser | None, tools: ToolParser | None, *, max_calls: int | None = None
    ) -> None:
        self._think = think
        self._tools = tools
        self._max_calls = max_calls

    def push(self, text: str) -> list[Event]:
        if self._think is None:
            return self._answer(text)
        return self._split(self._think.push(text))

    def finish(self) -> list[Event]:
        events = [] if self._think is None else self._split(self._think.finish())
        if self._tools is not None:
            events += self._bounded(self._tools.finish())
        return events

    def _split(self, events: list[Event]) -> list[Event]:
        result: list[Event] = []
        for event in events:
            if isinstance(event, ContentDelta):
                result += self._answer(event.text)
            else:
                result.append(event)
        return result

    def _answer(self, text: str) -> list[Event]:
        if self._tools is None:
            return [ContentDelta(text)] if text else []
        return self._bounded(self._tools.push(text))

    def _bounded(self, events: list[Event]) -> list[Event]:
        if self._max_calls is None:
            return events
        return [
            e
            for e in events
            if isinstance(e, ContentDelta) or getattr(e, "index", 0) < self._max_calls
        ]

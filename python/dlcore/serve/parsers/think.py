"""Reasoning between <think> and </think>, then the answer.

Chat templates differ in who writes the opening tag: the prompt may end with it (DeepSeek-R1,
Qwen3-Thinking), or the model begins with it (Qwen3). `opens_in_prompt` tells them apart. White
space around the two parts belongs to neither.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcore.serve.parsers.events import ContentDelta, Event, ReasoningDelta
from dlcore.serve.parsers.reader import Reader, Step

OPEN, CLOSE = "<think>", "</think>"


def opens_in_prompt(prompt: str) -> bool:
    """The prompt ends with the opening tag, so the answer begins inside the reasoning."""
    return prompt.rstrip().endswith(OPEN)


class ThinkParser:
    """Splits an answer into reasoning and content.

    `implicit_ends`: markers that end the reasoning without </think>; they stay content.
    """

    def __init__(self, *, in_reasoning: bool, implicit_ends: Sequence[str] = ()) -> None:
        self._reader = Reader()
        self._in_reasoning = in_reasoning
        self._ends = (CLOSE, *implicit_ends)
        self._events: list[Event] = []
        self._space = ""
        self._run_steps = self._run()

    def push(self, text: str) -> list[Event]:
        self._reader.append(text)
        return self._advance()

    def finish(self) -> list[Event]:
        self._reader.close()
        return self._advance()

    def _advance(self) -> list[Event]:
        next(self._run_steps, None)
        events, self._events = self._events, []
        return events

    def _run(self) -> Step[None]:
        reader = self._reader
        space = yield from reader.space()
        opened = yield from reader.accept(OPEN)
        if opened or self._in_reasoning:
            yield from reader.space()
            end = yield from reader.until(self._ends, self._reasoning)
            if end and end != CLOSE:
                reader.skip(-len(end))
            space = ""
            yield from reader.space()
        self._content(space)
        yield from reader.to_end(self._content)

    def _reasoning(self, text: str) -> None:
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        if body:
            self._events.append(ReasoningDelta(body))

    def _content(self, text: str) -> None:
        if text:
            self._events.append(ContentDelta(text))

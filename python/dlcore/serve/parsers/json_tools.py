"""Plain JSON, the format of Llama 3 and of constrained tool calls.

The answer is one call, {"name": ..., "parameters": {...}}, or a list of them; several calls
may also follow each other, set off by ";" or white space. Anything else is content.
"""

from __future__ import annotations

from dlcore.serve.parsers.base import Step, ToolParser
from dlcore.serve.parsers.json_call import CallResult, CallSink, json_call
from dlcore.serve.parsers.reader import Reader

PYTHON_TAG = "<|python_tag|>"


class JsonToolParser(ToolParser):
    def _run(self) -> Step[None]:
        reader = self._reader
        mark = reader.mark()
        yield from reader.space()
        yield from reader.accept(PYTHON_TAG)
        yield from reader.space()
        in_list = yield from reader.accept("[")
        calls = 0
        while True:
            yield from _separators(reader)
            if (yield from reader.peek()) != "{":
                break
            if not (yield from self._call(None if calls else mark)):
                return
            calls += 1
        if not calls:
            self._content(reader.release(mark))
        elif in_list:
            yield from reader.accept("]")
        yield from reader.to_end(self._content)

    def _call(self, mark: int | None) -> Step[bool]:
        """`mark`: the answer's start, while nothing of it is settled. False: text is over."""
        reader = self._reader
        index = -1
        begin = reader.mark() if mark is None else mark

        def start(name: str) -> None:
            nonlocal index
            reader.release(begin)
            index = self._start_call(name)

        sink = CallSink(start, lambda text: self._arguments(index, text))
        result: CallResult = yield from json_call(reader, sink)
        if not result.started:
            self._content(reader.release(begin))
            yield from reader.to_end(self._content)
            return False
        if result.complete:
            self._end_call(index)
            return True
        yield from reader.to_end(sink.arguments if result.in_arguments else _drop)
        return False


def _drop(_: str) -> None:
    """Takes text that belongs to nothing."""


def _separators(reader: Reader) -> Step[None]:
    """White space and the ";" or "," between calls."""
    yield from reader.space()
    while (yield from reader.accept(";")) or (yield from reader.accept(",")):
        yield from reader.space()

"""Hermes, Qwen2.5 and Qwen3: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

from __future__ import annotations

from dlcore.serve.parsers.base import Step, ToolParser
from dlcore.serve.parsers.json_call import CallSink, json_call

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesToolParser(ToolParser):
    def _run(self) -> Step[None]:
        while (yield from self._until_call((OPEN,))):
            yield from self._call()

    def _call(self) -> Step[None]:
        reader = self._reader
        index = -1
        mark = reader.mark()  # text to give back as content if this is no call

        def start(name: str) -> None:
            nonlocal index
            reader.release(mark)
            index = self._start_call(name)

        yield from reader.space()
        sink = CallSink(start, lambda text: self._arguments(index, text))
        result = yield from json_call(reader, sink)
        if not result.started:
            self._content(OPEN + reader.release(mark))
            return
        if result.in_arguments:
            # Broken JSON: what the model wrote up to the end marker.
            if (yield from reader.until((CLOSE,), sink.arguments)):
                self._end_call(index)
            return
        yield from reader.space()
        closed = yield from reader.accept(CLOSE)
        if result.complete or closed:
            self._end_call(index)

"""What DeepSeek-V3, V3.1 and Kimi-K2 share: a section of calls, each with JSON arguments."""

from __future__ import annotations

from collections.abc import Sequence

from dlcore.serve.parsers import json_text
from dlcore.serve.parsers.base import Step, ToolParser


class SectionedToolParser(ToolParser):
    """A subclass names the markers and implements `_header` (and `_before_arguments`)."""

    needs_special_tokens = True
    section_open: Sequence[str]
    section_close: Sequence[str]
    call_open: str
    call_close: str

    def _run(self) -> Step[None]:
        while marker := (yield from self._until_call((*self.section_open, self.call_open))):
            if marker == self.call_open:  # a call without a section around it
                yield from self._call()
            else:
                yield from self._section()

    def _section(self) -> Step[None]:
        while True:
            _, marker = yield from self._reader.text_until((self.call_open, *self.section_close))
            if marker != self.call_open:
                return
            yield from self._call()

    def _header(self) -> Step[tuple[str, str | None] | None]:
        """Reads up to the arguments: the function's name and the call's id, if it has one.

        None if the text ends there or names no function.
        """
        raise NotImplementedError

    def _call(self) -> Step[None]:
        header = yield from self._header()
        if header is None:
            return
        index = self._start_call(*header)
        reader = self._reader
        yield from reader.space()
        written = 0

        def write(text: str) -> None:
            nonlocal written
            written += len(text)
            self._arguments(index, text)

        whole = yield from json_text.wrapped_object(reader, write)
        # After whole arguments only a fence or white space is left. Broken ones go on to the
        # end of the call, as the model wrote them.
        closed = yield from reader.until((self.call_close,), _drop if whole else write)
        if closed and not written:
            write("{}")
        if closed:
            self._end_call(index)


def _drop(_: str) -> None:
    """Takes text that belongs to nothing."""

"""GLM-4.5 to GLM-5, with or without line breaks between the tags:

<tool_call>NAME
<arg_key>KEY</arg_key>
<arg_value>VALUE</arg_value>
</tool_call>
"""

from __future__ import annotations

from dlcore.serve.parsers.base import Step, ToolParser
from dlcore.serve.parsers.typed_arguments import ArgumentWriter

OPEN, CLOSE = "<tool_call>", "</tool_call>"
KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"


class Glm45ToolParser(ToolParser):
    def _run(self) -> Step[None]:
        while (yield from self._until_call((OPEN,))):
            yield from self._call()

    def _call(self) -> Step[None]:
        reader = self._reader
        space = yield from reader.space()
        name, marker = yield from reader.text_until(("\n", KEY, CLOSE))
        if not marker or not name.strip() or "{" in name:
            self._content(OPEN + space + name + marker)
            return
        if marker != "\n":
            reader.skip(-len(marker))
        name = name.strip()
        index = self._start_call(name)
        writer = ArgumentWriter(
            self._context.tools.get(name), lambda text: self._arguments(index, text)
        )
        if (yield from self._pairs(writer)):
            writer.close()
            self._end_call(index)

    def _pairs(self, writer: ArgumentWriter) -> Step[bool]:
        """False if the text ends inside of the call."""
        reader = self._reader
        while True:
            _, marker = yield from reader.text_until((KEY, CLOSE))
            if marker != KEY:
                return marker == CLOSE
            key, _ = yield from reader.text_until((KEY_END,))
            yield from reader.space()
            if not (yield from reader.accept(VALUE)):
                if reader.ended:
                    return False
                continue
            writer.begin(key.strip())
            if not (yield from reader.until((VALUE_END,), writer.text)):
                return False
            writer.end()

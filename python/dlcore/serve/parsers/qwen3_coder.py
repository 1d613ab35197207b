"""Qwen3-Coder, Qwen3-Next and Qwen3.5:

<tool_call>
<function=NAME>
<parameter=KEY>
VALUE
</parameter>
</function>
</tool_call>

The models sometimes leave out <tool_call> or a closing tag; the next opening tag then ends
what came before.
"""

from __future__ import annotations

from dlcore.serve.parsers.base import Step, ToolParser
from dlcore.serve.parsers.typed_arguments import ArgumentWriter

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
# A value is set off by one line break on each side, which is not part of it.
_VALUE_ENDS = tuple(
    lead + tag
    for tag in (PARAMETER_END, PARAMETER, FUNCTION_END, CLOSE)
    for lead in ("\n", "")
)  # fmt: skip


class Qwen3CoderToolParser(ToolParser):
    def _run(self) -> Step[None]:
        while marker := (yield from self._until_call((OPEN, FUNCTION))):
            if marker == OPEN:
                space = yield from self._reader.space()
                if not (yield from self._reader.accept(FUNCTION)):
                    self._content(OPEN + space)
                    continue
            yield from self._function()
            yield from self._reader.space()
            yield from self._reader.accept(CLOSE)

    def _function(self) -> Step[None]:
        name, marker = yield from self._reader.text_until((">", "\n"))
        if marker != ">" or not name.strip():
            self._content(FUNCTION + name + marker)
            return
        name = name.strip()
        index = self._start_call(name)
        writer = ArgumentWriter(
            self._context.tools.get(name), lambda text: self._arguments(index, text)
        )
        if (yield from self._parameters(writer)):
            writer.close()
            self._end_call(index)

    def _parameters(self, writer: ArgumentWriter) -> Step[bool]:
        """False if the text ends inside of the call."""
        reader = self._reader
        while True:
            _, marker = yield from reader.text_until((PARAMETER, FUNCTION_END, CLOSE))
            if marker == CLOSE:
                reader.skip(-len(CLOSE))
            if marker != PARAMETER:
                return bool(marker)
            name, marker = yield from reader.text_until((">",))
            if not marker:
                return False
            yield from reader.accept("\n")
            writer.begin(name.strip())
            marker = yield from reader.before(_VALUE_ENDS, writer.text)
            if not marker:
                return False
            writer.end()
            if marker.endswith(PARAMETER_END):
                reader.skip(len(marker))

"""DeepSeek-V3.2 ("function_calls") and V4 ("tool_calls"):

<｜DSML｜function_calls>
<｜DSML｜invoke name="NAME">
<｜DSML｜parameter name="KEY" string="true">TEXT</｜DSML｜parameter>
<｜DSML｜parameter name="KEY" string="false">JSON</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜function_calls>
"""

from __future__ import annotations

import re

from dlcore.serve.parsers.base import Step, ToolParser
from dlcore.serve.parsers.typed_arguments import ArgumentWriter

OPENS = ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>")
CLOSES = ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>")
INVOKE, INVOKE_END = "<｜DSML｜invoke", "</｜DSML｜invoke>"
PARAMETER, PARAMETER_END = "<｜DSML｜parameter", "</｜DSML｜parameter>"
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


class DeepSeekV32ToolParser(ToolParser):
    needs_special_tokens = True

    def _run(self) -> Step[None]:
        while marker := (yield from self._until_call((*OPENS, INVOKE))):
            if marker == INVOKE:
                yield from self._invoke()
            else:
                yield from self._section()

    def _section(self) -> Step[None]:
        while True:
            _, marker = yield from self._reader.text_until((INVOKE, *CLOSES))
            if marker != INVOKE:
                return
            yield from self._invoke()

    def _invoke(self) -> Step[None]:
        attributes, marker = yield from self._attributes()
        name = attributes.get("name")
        if not marker or not name:
            return
        index = self._start_call(name)
        writer = ArgumentWriter(
            self._context.tools.get(name), lambda text: self._arguments(index, text)
        )
        if (yield from self._parameters(writer)):
            writer.close()
            self._end_call(index)

    def _attributes(self) -> Step[tuple[dict[str, str], str]]:
        text, marker = yield from self._reader.text_until((">",))
        return dict(_ATTRIBUTE.findall(text)), marker

    def _parameters(self, writer: ArgumentWriter) -> Step[bool]:
        """False if the text ends inside of the call."""
        reader = self._reader
        while True:
            _, marker = yield from reader.text_until((PARAMETER, INVOKE_END, *CLOSES))
            if marker in CLOSES:
                reader.skip(-len(marker))
            if marker != PARAMETER:
                return bool(marker)
            attributes, marker = yield from self._attributes()
            if not marker:
                return False
            says = attributes.get("string")
            writer.begin(
                attributes.get("name", ""), is_string=None if says is None else says == "true"
            )
            if not (yield from reader.until((PARAMETER_END,), writer.text)):
                return False
            writer.end()

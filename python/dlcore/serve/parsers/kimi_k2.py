"""Kimi-K2:

<|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:INDEX
<|tool_call_argument_begin|>{...}<|tool_call_end|><|tool_calls_section_end|>

The model is shown its own ids again in the next turn, so they are kept.
"""

from __future__ import annotations

from dlcore.serve.parsers.base import Step
from dlcore.serve.parsers.sectioned import SectionedToolParser

ARGUMENTS = "<|tool_call_argument_begin|>"


class KimiK2ToolParser(SectionedToolParser):
    section_open = ("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>")
    section_close = ("<|tool_calls_section_end|>", "<|tool_call_section_end|>")
    call_open = "<|tool_call_begin|>"
    call_close = "<|tool_call_end|>"

    def _header(self) -> Step[tuple[str, str | None] | None]:
        text, marker = yield from self._reader.text_until((ARGUMENTS, self.call_close))
        call_id = text.strip()
        name = call_id.removeprefix("functions.").rsplit(":", 1)[0]
        if marker != ARGUMENTS or not name:
            return None
        return name, call_id

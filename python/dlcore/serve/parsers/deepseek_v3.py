"""DeepSeek-V3 and R1:

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
```json
{...}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>
"""

from __future__ import annotations

from dlcore.serve.parsers.base import Step
from dlcore.serve.parsers.sectioned import SectionedToolParser

SEPARATOR = "<｜tool▁sep｜>"


class DeepSeekToolParser(SectionedToolParser):
    section_open = ("<｜tool▁calls▁begin｜>",)
    section_close = ("<｜tool▁calls▁end｜>",)
    call_open = "<｜tool▁call▁begin｜>"
    call_close = "<｜tool▁call▁end｜>"


class DeepSeekV3ToolParser(DeepSeekToolParser):
    def _header(self) -> Step[tuple[str, str | None] | None]:
        reader = self._reader
        _, marker = yield from reader.text_until((SEPARATOR, self.call_close))
        if marker != SEPARATOR:
            return None
        name, marker = yield from reader.text_until(("\n", "```", self.call_close))
        if marker == self.call_close:
            reader.skip(-len(marker))
        if not marker or not name.strip():
            return None
        yield from reader.space()
        yield from reader.accept("```")
        yield from reader.accept("json")
        return name.strip(), None

"""DeepSeek-V3.1:

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
"""

from __future__ import annotations

from dlcore.serve.parsers.base import Step
from dlcore.serve.parsers.deepseek_v3 import SEPARATOR, DeepSeekToolParser


class DeepSeekV31ToolParser(DeepSeekToolParser):
    def _header(self) -> Step[tuple[str, str | None] | None]:
        name, marker = yield from self._reader.text_until((SEPARATOR, self.call_close))
        if marker != SEPARATOR or not name.strip():
            return None
        return name.strip(), None

"""The content blocks of a message, built from an answer's events, with the stream's events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dlcore.serve.parsers.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from dlcore.serve.schemas.anthropic import StreamEvent

Emit = Callable[[StreamEvent], None]


class ContentBlocks:
    """Blocks open and close in the order the model writes them; one is open at a time."""

    def __init__(self, emit: Emit) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._emit = emit
        self._open = ""
        self._arguments: list[str] = []

    def whole(self) -> list[dict[str, Any]]:
        """All blocks; only after `close`."""
        return self._blocks

    def add(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case ContentDelta(text):
                    self._text("text", "text", text)
                case ReasoningDelta(text):
                    self._text("thinking", "thinking", text)
                case ToolCallStart(_, name, call_id):
                    block = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
                    self._start("tool_use", block)
                case ToolCallArguments(_, text):
                    self._arguments.append(text)
                    self._delta({"type": "input_json_delta", "partial_json": text})
                case ToolCallEnd():
                    self.close()

    def close(self) -> None:
        if not self._open:
            return
        if self._open == "thinking":
            self._delta({"type": "signature_delta", "signature": ""})
        elif self._open == "tool_use":
            self._blocks[-1]["input"] = _json_object("".join(self._arguments))
            self._arguments = []
        self._open = ""
        self._emit(StreamEvent(type="content_block_stop", index=len(self._blocks) - 1))

    def _text(self, kind: str, field: str, text: str) -> None:
        if self._open != kind:
            extra = {"signature": ""} if kind == "thinking" else {}
            self._start(kind, {"type": kind, field: "", **extra})
        self._blocks[-1][field] += text
        self._delta({"type": f"{kind}_delta", field: text})

    def _start(self, kind: str, block: dict[str, Any]) -> None:
        self.close()
        self._open = kind
        self._blocks.append(block)
        index = len(self._blocks) - 1
        self._emit(StreamEvent(type="content_block_start", index=index, content_block=dict(block)))

    def _delta(self, delta: dict[str, Any]) -> None:
        index = len(self._blocks) - 1
        self._emit(StreamEvent(type="content_block_delta", index=index, delta=delta))


def _json_object(text: str) -> dict[str, Any]:
    """A call cut off by the length limit has half an object: it is shown as empty."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

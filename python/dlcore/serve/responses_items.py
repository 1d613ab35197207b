"""The output items of a response, built from an answer's events, with the events of each step.

The same object serves streamed and plain responses: a plain one drops the stream events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dlcore.serve.parsers.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from dlcore.serve.record import new_id
from dlcore.serve.schemas.chat import FunctionCall, Message, ToolCall

Emit = Callable[[str, dict[str, Any]], None]


class OutputItems:
    """Items open and close in the order the model writes them; one is open at a time."""

    def __init__(self, emit: Emit) -> None:
        self.items: list[dict[str, Any]] = []
        self._emit = emit
        self._open = ""  # kind of the item being written: "", message, reasoning, function_call

    def add(self, events: list[Event], logprobs: list[Any]) -> None:
        """`logprobs` belong to the batch; they go with its first piece of content."""
        for event in events:
            match event:
                case ContentDelta(text):
                    self._text("message", "output_text", text, logprobs)
                    logprobs = []
                case ReasoningDelta(text):
                    self._text("reasoning", "reasoning_text", text, [])
                case ToolCallStart(_, name, call_id):
                    self._start_call(name, call_id)
                case ToolCallArguments(_, text):
                    self._arguments(text)
                case ToolCallEnd():
                    self.close()

    def close(self, status: str = "completed") -> None:
        """Ends the open item; `incomplete` where the answer was cut off inside it."""
        if not self._open:
            return
        item, index = self.items[-1], len(self.items) - 1
        item["status"] = status
        if self._open == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            self._item_event("function_call_arguments.done", done)
        else:
            self._close_part(item["content"][0])
        self._open = ""
        self._emit("response.output_item.done", {"output_index": index, "item": item})

    def _text(self, kind: str, part_type: str, text: str, logprobs: list[Any]) -> None:
        if self._open != kind:
            self._start_text(kind, part_type)
        part = self.items[-1]["content"][0]
        part["text"] += text
        delta: dict[str, Any] = {"content_index": 0, "delta": text}
        if part_type == "output_text":
            part["logprobs"] += logprobs
            delta["logprobs"] = logprobs
        self._item_event(f"{part_type}.delta", delta)

    def _start_text(self, kind: str, part_type: str) -> None:
        self.close()
        part: dict[str, Any] = {"type": part_type, "text": ""}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}
            item: dict[str, Any] = {"id": f"msg_{new_id()}", "type": kind, "role": "assistant"}
        else:
            item = {"id": f"rs_{new_id()}", "type": kind, "summary": []}
        self._start(kind, {**item, "status": "in_progress", "content": []})
        self.items[-1]["content"].append(part)
        self._item_event("content_part.added", {"content_index": 0, "part": dict(part)})

    def _close_part(self, part: dict[str, Any]) -> None:
        done: dict[str, Any] = {"content_index": 0, "text": part["text"]}
        if part["type"] == "output_text":
            done["logprobs"] = part["logprobs"]
        self._item_event(f"{part['type']}.done", done)
        self._item_event("content_part.done", {"content_index": 0, "part": part})

    def _start_call(self, name: str, call_id: str) -> None:
        self.close()
        item = {
            "id": f"fc_{new_id()}",
            "type": "function_call",
            "call_id": call_id,
            "name": name,
            "arguments": "",
            "status": "in_progress",
        }
        self._start("function_call", item)

    def _arguments(self, text: str) -> None:
        self.items[-1]["arguments"] += text
        self._item_event("function_call_arguments.delta", {"delta": text})

    def _start(self, kind: str, item: dict[str, Any]) -> None:
        self.items.append(item)
        self._open = kind
        index = len(self.items) - 1
        # A copy: the item grows, while this event shows it as it began.
        shown = {k: list(v) if isinstance(v, list) else v for k, v in item.items()}
        self._emit("response.output_item.added", {"output_index": index, "item": shown})

    def _item_event(self, name: str, fields: dict[str, Any]) -> None:
        where = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        self._emit(f"response.{name}", {**where, **fields})


def as_message(items: list[dict[str, Any]]) -> Message:
    """The assistant's turn these items were, for the next request to build on."""
    message = Message(role="assistant")
    for item in items:
        if item["type"] == "message":
            message.content = (message.content or "") + item["content"][0]["text"]
        elif item["type"] == "reasoning":
            message.reasoning_content = item["content"][0]["text"]
        else:
            function = FunctionCall(name=item["name"], arguments=item["arguments"])
            call = ToolCall(id=item["call_id"], function=function)
            message.tool_calls = [*(message.tool_calls or []), call]
    return message

"""Parser events -> the deltas and messages of the chat API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import UNSET

from dlcore.serve.parsers.events import (
    ContentDelta,
    Event,
    ParsedMessage,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
)
from dlcore.serve.schemas.chat import AssistantMessage, ChatDelta
from dlcore.serve.schemas.common import JsonObject


def chat_deltas(events: Iterable[Event]) -> list[ChatDelta]:
    """One delta per run of events of a kind, so that a batch of events is few chunks."""
    deltas: list[ChatDelta] = []
    for event in events:
        last = deltas[-1] if deltas else ChatDelta()
        match event:
            case ContentDelta(text):
                if isinstance(last.content, str):
                    last.content += text
                else:
                    deltas.append(ChatDelta(content=text))
            case ReasoningDelta(text):
                if isinstance(last.reasoning_content, str):
                    last.reasoning_content += text
                else:
                    deltas.append(ChatDelta(reasoning_content=text))
            case ToolCallStart(index, name, call_id):
                deltas.append(ChatDelta(tool_calls=[_call(index, "", name=name, call_id=call_id)]))
            case ToolCallArguments(index, text):
                if last.tool_calls is not UNSET and last.tool_calls[0]["index"] == index:
                    last.tool_calls[0]["function"]["arguments"] += text
                else:
                    deltas.append(ChatDelta(tool_calls=[_call(index, text)]))
    return deltas


def _call(
    index: int, arguments: str, *, name: str | None = None, call_id: str | None = None
) -> JsonObject:
    function = {"arguments": arguments}
    if name is None:
        return {"index": index, "function": function}
    head = {"index": index, "id": call_id, "type": "function"}
    return {**head, "function": {"name": name, **function}}


def assistant_message(events: Sequence[Event]) -> AssistantMessage:
    """The whole message. `content` is null where there are only tool calls."""
    parsed = ParsedMessage()
    parsed.add(events)
    calls: list[JsonObject] = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in parsed.tool_calls
    ]
    return AssistantMessage(
        content=parsed.content if parsed.content or not calls else None,
        reasoning_content=parsed.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )

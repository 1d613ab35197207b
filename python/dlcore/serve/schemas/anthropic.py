"""/v1/messages and /v1/messages/count_tokens: the Anthropic Messages API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from dlcore.serve.schemas.common import (
    MAX_INT32,
    JsonObject,
    PositiveCount,
    ResumedAnswer,
    Seed,
    StopStrings,
)


class Block(Struct, kw_only=True):
    """A piece of a message, told apart by `type`."""

    type: Literal[
        "text", "image", "document", "search_result", "tool_use", "tool_result", "thinking",
        "redacted_thinking",
    ]  # fmt: skip
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: JsonObject | None = None
    tool_use_id: str | None = None
    content: str | list[JsonObject] | None = None
    is_error: bool | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class MessageParam(Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class SystemBlock(Struct, kw_only=True):
    type: Literal["text"]
    text: str


class AnthropicTool(Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    input_schema: JsonObject | None = None
    description: str | None = None
    type: str | None = None


class AnthropicToolChoice(Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, kw_only=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: PositiveCount | None = None
    display: str | None = None


class Metadata(Struct, kw_only=True):
    user_id: str | None = None


class CountTokensRequest(Struct, kw_only=True):
    messages: Annotated[list[MessageParam], Meta(min_length=1, max_length=65536)]
    model: str | None = None
    system: str | list[SystemBlock] | None = None
    tools: Annotated[list[AnthropicTool], Meta(max_length=1024)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: PositiveCount
    stop_sequences: StopStrings | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    metadata: Metadata | None = None
    seed: Seed | None = None
    return_token_ids: bool | None = None
    resume_token_ids: ResumedAnswer | None = None


class AnthropicUsage(Struct, kw_only=True):
    """`input_tokens` leaves out what the prefix cache served, as the API defines it."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


class MessageResponse(Struct, kw_only=True):
    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[JsonObject]
    stop_reason: str | None
    stop_sequence: str | None = None
    usage: AnthropicUsage


class TokenCount(Struct, kw_only=True):
    input_tokens: int


class StreamEvent(Struct, kw_only=True, omit_defaults=True):
    """One event of a stream; which fields it has depends on `type`."""

    type: str
    message: MessageResponse | None = None
    index: int | None = None
    content_block: JsonObject | None = None
    delta: JsonObject | None = None
    usage: Any = None
    error: JsonObject | UnsetType = UNSET

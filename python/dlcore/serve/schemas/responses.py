"""/v1/responses: the request, the items of its input and output, the response object."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from dlcore.serve.schemas.common import (
    MAX_INT32,
    JsonObject,
    PositiveCount,
    ResumedAnswer,
    Seed,
)


class InputPart(Struct, kw_only=True):
    """A piece of a message's content, told apart by `type`."""

    type: Literal[
        "input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text",
        "input_image", "input_file", "input_audio",
    ]  # fmt: skip
    text: str | None = None
    refusal: str | None = None


class InputItem(Struct, kw_only=True):
    """A message (also without `type`), a tool call, its output, or reasoning."""

    type: Literal[
        "message", "function_call", "function_call_output", "reasoning", "item_reference"
    ] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None
    status: str | None = None


class FunctionTool(Struct, kw_only=True):
    type: Literal["function"]
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class FunctionChoice(Struct, kw_only=True):
    type: Literal["function"]
    name: str


class TextFormat(Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: JsonObject | None = None
    strict: bool | None = None


class TextOptions(Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Struct, kw_only=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesRequest(Struct, kw_only=True):
    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=65536)]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: PositiveCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Seed | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=1024)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
    priority: Annotated[int, Meta(ge=-MAX_INT32, le=MAX_INT32)] | None = None
    cache_salt: Annotated[str, Meta(max_length=1024)] | None = None
    chat_template_kwargs: JsonObject | None = None
    return_token_ids: bool | None = None
    resume_token_ids: ResumedAnswer | None = None


class InputTokensDetails(Struct, kw_only=True):
    cached_tokens: int = 0


class OutputTokensDetails(Struct, kw_only=True):
    reasoning_tokens: int = 0


class ResponseUsage(Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Struct, kw_only=True):
    reason: str


class ResponseError(Struct, kw_only=True):
    code: str
    message: str


class ResponseObject(Struct, kw_only=True):
    id: str
    object: str = "response"
    created_at: int
    status: str
    model: str
    output: list[JsonObject]
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    tool_choice: Any
    tools: list[FunctionTool]
    background: bool
    max_output_tokens: int | None
    previous_response_id: str | None
    reasoning: Reasoning | None
    text: TextOptions | UnsetType = UNSET
    truncation: str = "disabled"
    store: bool = True
    usage: ResponseUsage | None = None
    user: str | None = None

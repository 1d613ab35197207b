"""What the chat and completion APIs share: limits, sampling fields, usage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1

TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
Count = Annotated[int, Meta(ge=0, le=MAX_INT32)]
PositiveCount = Annotated[int, Meta(ge=1, le=MAX_INT32)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
StopStrings = Annotated[list[StopString], Meta(max_length=64)]
Seed = Annotated[int, Meta(ge=-MAX_INT64 - 1, le=MAX_INT64)]
# Of an answer with one choice: tokens generated elsewhere, which are not streamed again.
ResumedAnswer = Annotated[list[list[TokenId]], Meta(min_length=1, max_length=1)]
JsonObject = dict[str, Any]


class StreamOptions(Struct, kw_only=True):
    """`include_usage` adds a last chunk with the usage; the other, to every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchemaFormat(Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    schema: JsonObject | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    """`json_schema` needs the field of that name; `structural_tag` is xgrammar's."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: list[JsonObject] | None = None
    triggers: list[str] | None = None
    format: JsonObject | None = None


class StructuredOutputsField(Struct, kw_only=True, omit_defaults=True):
    """vLLM's `structured_outputs`: exactly one field is given."""

    json: JsonObject | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=10_000)] | None = None
    grammar: str | None = None
    structural_tag: JsonObject | str | None = None


class KvTransferParams(Struct, kw_only=True, omit_defaults=True):
    """Hand-over between nodes: `do_remote_decode` asks a prefill node for a ticket, which a
    decode node takes together with the same prompt."""

    do_remote_decode: bool = False
    ticket: Annotated[str, Meta(max_length=16_384)] | None = None


class SamplingFields(Struct, kw_only=True):
    """Sampling and service parameters; null means the default."""

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    stop: StopString | StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] | None = None
    include_stop_str_in_output: bool | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = None
    bad_words: Annotated[list[StopString], Meta(max_length=256)] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsField | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    resume_token_ids: Annotated[list[list[TokenId] | None], Meta(min_length=1)] | None = None
    kv_transfer_params: KvTransferParams | None = None
    priority: Annotated[int, Meta(ge=-MAX_INT32, le=MAX_INT32)] | None = None
    cache_salt: Annotated[str, Meta(max_length=1024)] | None = None
    request_id: Annotated[str, Meta(max_length=128)] | None = None
    user: Annotated[str, Meta(max_length=4096)] | None = None


class PromptTokensDetails(Struct, kw_only=True):
    cached_tokens: int = 0


class CompletionTokensDetails(Struct, kw_only=True):
    reasoning_tokens: int = 0


class Usage(Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


def make_usage(prompt: int, completion: int, cached: int, reasoning: int = 0) -> Usage:
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning),
    )

"""/v1/completions: the request and the answer (a chunk has the answer's shape)."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from dlcore.serve.schemas.common import MAX_INT32, KvTransferParams, SamplingFields, TokenId, Usage

TokenIds = list[TokenId]


class CompletionRequest(SamplingFields, kw_only=True):
    """`prompt`: text, token ids, or a list of either (one completion each)."""

    prompt: str | list[str | TokenId | TokenIds]
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = 16
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None


class CompletionLogprobs(Struct, kw_only=True):
    """The legacy format: parallel lists over the tokens."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[Any] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str | None = None
    kv_transfer_params: KvTransferParams | UnsetType = UNSET

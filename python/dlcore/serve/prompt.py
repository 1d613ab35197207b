"""Prompts: text, token ids or chat messages -> token ids, with their length checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dlcore.chat_template import ChatTemplate, ChatTemplateError
from dlcore.engine_client import EngineClient
from dlcore.serve.errors import ApiError, bad_request
from dlcore.tokenizer import Tokenizer

T = TypeVar("T")

_INLINE_CHARS = 16_384  # longer texts are tokenised on a thread: the loop has streams to feed
_MAX_CHARS_PER_TOKEN = 256  # longer than any token of the vocabularies served


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: list[int]
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """What a chat template is rendered from."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = False


def need_tokenizer(engine: EngineClient, param: str) -> Tokenizer:
    if engine.tokenizer is None:
        raise bad_request(
            f"{param}: this model has no tokenizer; send token ids as `prompt` to /v1/completions",
            param,
        )
    return engine.tokenizer


async def from_text(
    engine: EngineClient, text: str, *, add_special_tokens: bool = True, param: str = "prompt"
) -> Prompt:
    tokenizer = need_tokenizer(engine, param)
    _check_chars(text, engine.max_model_len, param)

    def encode() -> list[int]:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)

    return Prompt(await _maybe_threaded(encode, len(text)), text)


def from_token_ids(engine: EngineClient, ids: Sequence[int], param: str = "prompt") -> Prompt:
    if not ids:
        raise bad_request(f"{param}: the prompt has no tokens", param)
    check_token_ids(engine, ids, param)
    return Prompt(list(ids))


def check_token_ids(engine: EngineClient, ids: Sequence[int], param: str) -> None:
    """Raises ApiError 400 for an id that the model does not know; negative ones are none here."""
    largest = max(ids, default=0)
    if largest >= engine.vocab_size:
        raise bad_request(
            f"{param}: token id {largest} is outside the vocabulary of {engine.vocab_size}", param
        )


async def from_chat(
    engine: EngineClient,
    chat: ChatPrompt,
    *,
    template: ChatTemplate | None = None,
    param: str = "messages",
) -> Prompt:
    """`template` replaces the model's. Raises ApiError 400 when it refuses the messages."""
    tokenizer = need_tokenizer(engine, param)
    size = sum(_message_size(message) for message in chat.messages)
    if size > engine.max_model_len * _MAX_CHARS_PER_TOKEN:
        raise _too_long(size, engine.max_model_len, param)

    def render() -> Prompt:
        text = (template.render if template is not None else tokenizer.apply_chat_template)(
            chat.messages,
            tools=chat.tools,
            documents=chat.documents,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            **(chat.template_kwargs or {}),
        )
        ids = tokenizer.encode(text, add_special_tokens=chat.add_special_tokens)
        return Prompt(ids, text)

    try:
        return await _maybe_threaded(render, size)
    except ChatTemplateError as exc:
        raise bad_request(f"{param}: {exc}", param) from None


def truncated(prompt: Prompt, limit: int | None, max_model_len: int, reserve: int) -> Prompt:
    """The last `limit` tokens; -1 keeps what fits the model beside `reserve` new tokens."""
    if limit is None:
        return prompt
    keep = max(1, max_model_len - reserve) if limit == -1 else limit
    if keep < 1:
        raise bad_request("truncate_prompt_tokens: must be -1 or at least 1, got 0",
                          "truncate_prompt_tokens")  # fmt: skip
    return prompt if len(prompt.token_ids) <= keep else Prompt(prompt.token_ids[-keep:])


def _message_size(message: dict[str, Any]) -> int:
    content = message.get("content")
    return len(content) if isinstance(content, str) else 0


def _check_chars(text: str, max_model_len: int, param: str) -> None:
    if len(text) > max_model_len * _MAX_CHARS_PER_TOKEN:
        raise _too_long(len(text), max_model_len, param)


def _too_long(chars: int, max_model_len: int, param: str) -> ApiError:
    return bad_request(
        f"{param}: {chars} characters cannot fit this model's maximum context length of "
        f"{max_model_len} tokens",
        param,
        "context_length_exceeded",
    )


async def _maybe_threaded(work: Callable[[], T], chars: int) -> T:
    return work() if chars <= _INLINE_CHARS else await asyncio.to_thread(work)

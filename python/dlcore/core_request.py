"""What the front end asks of the C++ core: checks a request and translates its parameters."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcore.core_engine import Int32Array
from dlcore.resumption import FIELD as RESUME_FIELD
from dlcore.resumption import ResumeTokenIds
from dlcore.sampling_params import ParameterError, SamplingParams
from dlcore.tokenizer import Tokenizer

SEED_BITS = 64
SEED_RANGE: int = 1 << SEED_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What one request may ask of this engine."""

    max_model_len: int
    vocab_size: int
    max_logprobs: int = 20


def check_request(
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    limits: RequestLimits,
    tokenizer: Tokenizer | None,
) -> Int32Array:
    """The prompt's ids [tokens]. Raises ParameterError naming the parameter the engine cannot
    serve."""
    prompt = _check_prompt(prompt_token_ids, limits)
    if params.stop and tokenizer is None:
        raise ParameterError("stop", "this model has no tokenizer; use stop_token_ids")
    if params.bad_words and tokenizer is None:
        raise ParameterError("bad_words", "this model has no tokenizer; use logit_bias")
    for name, ids in (
        ("stop_token_ids", params.stop_token_ids),
        ("allowed_token_ids", params.allowed_token_ids or ()),
        ("logit_bias", params.logit_bias or ()),
    ):
        _check_ids(name, ids, limits.vocab_size)
    if params.allowed_token_ids is not None and not params.allowed_token_ids:
        raise ParameterError("allowed_token_ids", "must name at least one token")
    for name, value in (
        ("logprobs", params.logprobs),
        ("prompt_logprobs", params.prompt_logprobs),
    ):
        if value is not None and value > limits.max_logprobs:
            raise ParameterError(name, f"must be at most {limits.max_logprobs}, got {value}")
    return prompt.astype(np.int32)


def check_resume_ids(resume: ResumeTokenIds, limits: RequestLimits) -> None:
    """Raises ParameterError for token ids that are none of this model's."""
    for tokens in resume:
        _check_ids(RESUME_FIELD, tokens or (), limits.vocab_size)


def check_prompt_text(text: str, tokenizer: Tokenizer | None, limits: RequestLimits) -> None:
    """Refuses a text that cannot fit before it is tokenised, which takes a while."""
    if tokenizer is None:
        return
    most = tokenizer.max_token_bytes * limits.max_model_len
    if len(text) > most:
        raise ParameterError(
            "prompt",
            f"has {len(text)} characters, more than max_model_len ({limits.max_model_len} "
            f"tokens) can hold; shorten it",
        )


def encode_prompt(text: str, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        raise ParameterError(
            "prompt", "this model has no tokenizer; send prompt_token_ids instead of text"
        )
    return tokenizer.encode(text)


def max_tokens_of(params: SamplingParams, prompt_len: int, limits: RequestLimits) -> int:
    """`max_tokens`, or all the room the prompt leaves."""
    room = limits.max_model_len - prompt_len
    return room if params.max_tokens is None else min(params.max_tokens, room)


def draw_seed(params: SamplingParams) -> int:
    """The request's seed as the core takes it: 64 bits, random when the client gave none."""
    if params.seed is None:
        return secrets.randbits(SEED_BITS)
    return params.seed % SEED_RANGE


def core_params(
    params: SamplingParams, *, seed: int, max_tokens: int, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """Keyword arguments of `_core.SamplingParams` (cpp/include/dlcore/request.h)."""
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "top_k": max(params.top_k, 0),
        "seed": seed % SEED_RANGE,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "max_tokens": max_tokens,
        "min_tokens": min(params.min_tokens, max_tokens),
        "ignore_eos": params.ignore_eos,
        "stop_token_ids": list(params.stop_token_ids),
        "logit_bias": sorted((params.logit_bias or {}).items()),
        "allowed_token_ids": list(params.allowed_token_ids or ()),
        "bad_words": _bad_word_ids(params.bad_words, tokenizer),
        "logprobs": -1 if params.logprobs is None else params.logprobs,
        "prompt_logprobs": -1 if params.prompt_logprobs is None else params.prompt_logprobs,
    }


def _check_prompt(ids: Sequence[int], limits: RequestLimits) -> np.ndarray[Any, Any]:
    if not len(ids):
        raise ParameterError("prompt", "must hold at least one token")
    if len(ids) >= limits.max_model_len:
        raise ParameterError(
            "prompt",
            f"has {len(ids)} tokens, and max_model_len is {limits.max_model_len} including at "
            f"least one new token; shorten it to {limits.max_model_len - 1}",
        )
    return _check_ids("prompt", ids, limits.vocab_size)


def _check_ids(name: str, ids: Iterable[int], vocab_size: int) -> np.ndarray[Any, Any]:
    values = np.asarray(list(ids))
    if not values.size:
        return values
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ParameterError(name, "must hold integers (token ids)")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ParameterError(name, f"token id {wrong} is outside [0, {vocab_size})")
    return values


def _bad_word_ids(words: Sequence[str], tokenizer: Tokenizer | None) -> list[list[int]]:
    """Each word as a beginning of text and after a space: most vocabularies tell them apart."""
    if not words or tokenizer is None:
        return []
    spellings = [form for word in words for form in (word.lstrip(), " " + word.lstrip()) if word]
    rows = tokenizer.encode_batch(spellings, add_special_tokens=False)
    return [list(row) for row in dict.fromkeys(tuple(row) for row in rows if row)]

"""How to sample: one immutable object per request, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

MAX_SEED = 2**63 - 1


class ParameterError(ValueError):
    """A sampling parameter is wrong; `param` names it (the HTTP layer answers 400 with it)."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningSpan:
    """Reasoning before a constrained answer; its text is free.

    `is_open`: the prompt already began it. Else the model may begin it, or answer at once.
    """

    start: str = "<think>"
    end: str = "</think>"
    is_open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """Exactly one of the first six constrains the text (see dlcore.structured).

    `param` names the request's field in errors.
    """

    json_schema: dict[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None  # EBNF
    choice: tuple[str, ...] | None = None
    structural_tag: dict[str, Any] | str | None = None
    reasoning: ReasoningSpan | None = None
    param: str = "structured_outputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Names and defaults follow vLLM's `SamplingParams`."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1 = off
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = 16  # None = up to max_model_len
    min_tokens: int = 0
    stop: tuple[str, ...] | list[str] | str = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | list[int] | None = None
    bad_words: tuple[str, ...] | list[str] = ()
    skip_special_tokens: bool = True
    detokenize: bool = True
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        _check_range("n", self.n, 1, 128)
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_range("top_k", self.top_k, -1, 2**31 - 1)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        if self.seed is not None:
            _check_range("seed", self.seed, -MAX_SEED - 1, MAX_SEED)
        if self.max_tokens is not None:
            _check_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _check_range("min_tokens", self.min_tokens, 0, self.max_tokens or 2**31 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _check_range(name, value, 0, 20)
        if any(not s for s in stop):
            raise ParameterError("stop", "a stop string must not be empty")


def _check_range(
    name: str, value: float, low: float, high: float, *, open_low: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterError(name, f"must be a number, got {type(value).__name__}")
    if math.isnan(value) or math.isinf(value):
        raise ParameterError(name, f"must be finite, got {value}")
    if value < low or value > high or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise ParameterError(name, f"must be in {bracket}{low}, {high}], got {value}")

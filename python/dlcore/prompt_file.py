"""Files of prompts for `dlcore generate`: one text a line, or one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from dlcore.sampling_params import ParameterError, SamplingParams

# The ways to give a prompt, and the field of PromptLine that holds it.
PROMPT_KEYS = {"prompt": "text", "messages": "messages", "prompt_token_ids": "token_ids"}
_SAMPLING_KEYS = {f.name for f in fields(SamplingParams)} - {"structured_outputs", "extra"}


class PromptFileError(ValueError):
    """A line cannot be read; the message names it."""


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One request: exactly one of the three ways to give a prompt."""

    number: int  # of the line, from 1
    params: SamplingParams
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    token_ids: list[int] | None = None
    asks_chat: bool = False  # a plain line of text: a chat message where the model chats
    id: Any = None  # what the line called itself, given back with the answer


def read_prompts(
    lines: Iterable[str], defaults: SamplingParams, *, jsonl: bool
) -> Iterator[PromptLine]:
    """Skips empty lines. Raises PromptFileError."""
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text.strip():
            yield (
                _read_object(number, text, defaults)
                if jsonl
                else PromptLine(number, defaults, text=text, asks_chat=True)
            )


def _read_object(number: int, line: str, defaults: SamplingParams) -> PromptLine:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise PromptFileError(f"line {number}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise PromptFileError(f"line {number}: must be a JSON object")
    given = [key for key in PROMPT_KEYS if key in row]
    if len(given) != 1:
        raise PromptFileError(f"line {number}: needs exactly one of {', '.join(PROMPT_KEYS)}")
    unknown = sorted(row.keys() - {*PROMPT_KEYS, "id"} - _SAMPLING_KEYS)
    if unknown:
        raise PromptFileError(f"line {number}: unknown field {', '.join(unknown)}")
    prompt = row[given[0]]
    expected = str if given[0] == "prompt" else list
    if not isinstance(prompt, expected):
        raise PromptFileError(f"line {number}: {given[0]} must be a {expected.__name__}")
    way: dict[str, Any] = {PROMPT_KEYS[given[0]]: prompt}
    return PromptLine(number, _params(number, row, defaults), id=row.get("id"), **way)


def _params(number: int, row: dict[str, Any], defaults: SamplingParams) -> SamplingParams:
    changes = {key: row[key] for key in row.keys() & _SAMPLING_KEYS}
    try:
        if isinstance(changes.get("logit_bias"), dict):
            changes["logit_bias"] = {int(k): v for k, v in changes["logit_bias"].items()}
        return replace(defaults, **changes)
    except (ParameterError, TypeError, ValueError) as error:
        raise PromptFileError(f"line {number}: {error}") from None

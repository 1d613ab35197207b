"""One rule in the form the compiler takes and the cache is keyed by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dlcore.sampling_params import ParameterError, StructuredOutputs
from dlcore.structured.json_schema import SchemaError, enforceable

MAX_SPEC_CHARS = 256 * 1024
MAX_CHOICES = 10_000
# Up to here a JSON schema compiles in well under a second whatever it says.
SMALL_SPEC_CHARS = 4096
SMALL_COUNT = 256

Kind = Literal["json_schema", "regex", "grammar", "structural_tag"]
_COUNTS = re.compile(r"(min|max)(Length|Items|Properties)")
_SLOW_KEYWORDS = frozenset({"pattern", "patternProperties", "propertyNames"})


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """`text`: a JSON schema, a regex, an EBNF grammar or a structural tag.

    `is_small`: bounded in compile time by its form alone, so it needs no process of its own.
    """

    kind: Kind
    text: str
    is_small: bool = False


def grammar_spec(wanted: StructuredOutputs) -> GrammarSpec:
    """Raises ParameterError (`wanted.param`) for a rule that is malformed or too large."""
    given = [
        name
        for name in ("json_schema", "regex", "grammar", "choice", "structural_tag")
        if getattr(wanted, name) is not None
    ] + (["json_object"] if wanted.json_object else [])
    if len(given) != 1:
        raise ParameterError(
            wanted.param,
            "give exactly one of json_schema, json_object, regex, grammar, choice, "
            f"structural_tag; got {', '.join(given) or 'none'}",
        )
    try:
        spec = _spec(given[0], wanted)
    except (SchemaError, ValueError, RecursionError) as error:
        raise ParameterError(wanted.param, str(error)) from None
    if len(spec.text) > MAX_SPEC_CHARS:
        raise ParameterError(
            wanted.param, f"must be at most {MAX_SPEC_CHARS} characters, got {len(spec.text)}"
        )
    if "\0" in spec.text or any("\ud800" <= c <= "\udfff" for c in spec.text):
        raise ParameterError(wanted.param, "must not hold null characters or lone surrogates")
    return spec


def _spec(name: str, wanted: StructuredOutputs) -> GrammarSpec:
    match name:
        case "json_object":
            return _schema_spec({"type": "object"})
        case "json_schema":
            return _schema_spec(_as_object("json_schema", wanted.json_schema))
        case "choice":
            return _choice_spec(wanted.choice or ())
        case "regex":
            return GrammarSpec("regex", str(wanted.regex))
        case "grammar":
            return GrammarSpec("grammar", str(wanted.grammar))
    tag = _as_object("structural_tag", wanted.structural_tag)
    return GrammarSpec("structural_tag", json.dumps(tag, ensure_ascii=False))


def _as_object(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if len(value) > MAX_SPEC_CHARS:
        raise ValueError(f"{name} must be at most {MAX_SPEC_CHARS} characters, got {len(value)}")
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None


def _schema_spec(schema: Any) -> GrammarSpec:
    text = json.dumps(enforceable(schema), ensure_ascii=False)
    small = len(text) <= SMALL_SPEC_CHARS and not any(map(_is_slow, _members(schema)))
    return GrammarSpec("json_schema", text, small)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of every object in `value`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _members(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _members(inner)


def _is_slow(member: tuple[str, Any]) -> bool:
    key, value = member
    if key in _SLOW_KEYWORDS:
        return True
    return bool(_COUNTS.fullmatch(key)) and isinstance(value, int | float) and value > SMALL_COUNT


def _choice_spec(choices: tuple[str, ...]) -> GrammarSpec:
    if not choices or len(choices) > MAX_CHOICES:
        raise ValueError(f"choice must have 1 to {MAX_CHOICES} texts, got {len(choices)}")
    if not all(isinstance(text, str) and text for text in choices):
        raise ValueError("choice: every choice must be a text that is not empty")
    quoted = " | ".join(json.dumps(text) for text in dict.fromkeys(choices))
    text = f"root ::= {quoted}"
    return GrammarSpec("grammar", text, len(text) <= SMALL_SPEC_CHARS)

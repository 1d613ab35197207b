"""Arguments that a model writes as tagged text, turned into the text of a JSON object.

A parameter whose schema says string is passed on as it comes; any other waits for its end,
because only its whole text shows whether it is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]
# The JSON types a parameter may have; None: unknown, so any.
Types = frozenset[str] | None
_STRING: Types = frozenset({"string"})


class ArgumentWriter:
    """Writes one call's arguments. Calls: (begin, text..., end)..., close."""

    def __init__(self, schema: Schema | None, emit: Callable[[str], None]) -> None:
        properties = (schema or {}).get("properties")
        self._properties: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
        self._emit = emit
        self._count = 0
        self._types: Types = _STRING
        self._held: list[str] = []

    def begin(self, name: str, *, is_string: bool | None = None) -> None:
        """`is_string`: where the format itself says so; else the schema decides."""
        if is_string is None:
            self._types = schema_types(self._properties.get(name))
        else:
            self._types = _STRING if is_string else None
        self._held = []
        lead = ", " if self._count else "{"
        self._count += 1
        self._emit(f"{lead}{json.dumps(name, ensure_ascii=False)}: ")
        if self._types == _STRING:
            self._emit('"')

    def text(self, text: str) -> None:
        if self._types == _STRING:
            self._emit(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._held.append(text)

    def end(self) -> None:
        self._emit('"' if self._types == _STRING else as_json("".join(self._held), self._types))

    def close(self) -> None:
        self._emit("}" if self._count else "{}")


def as_json(text: str, types: Types) -> str:
    """`text` itself if it is JSON of one of `types`, else `text` as a string."""
    stripped = text.strip()
    if stripped.lower() in ("true", "false", "null", "none"):
        stripped = stripped.lower().replace("none", "null")
    try:
        value = json.loads(stripped, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    fits = types is None or "string" not in types or not _kinds(value).isdisjoint(types)
    return stripped if fits else json.dumps(text, ensure_ascii=False)


def schema_types(schema: Any) -> Types:
    """A parameter that its function does not declare is a string."""
    if not isinstance(schema, Mapping):
        return _STRING
    kind = schema.get("type")
    if isinstance(kind, str):
        return frozenset({kind})
    if isinstance(kind, list):
        return frozenset(k for k in kind if isinstance(k, str))
    if isinstance(schema.get("enum"), list):
        return frozenset().union(*map(_kinds, schema["enum"]))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            options = [schema_types(option) for option in schema[key]]
            known = [option for option in options if option is not None]
            return frozenset().union(*known) if len(known) == len(options) else None
    return None if schema.keys() & {"allOf", "$ref", "const"} else _STRING


def _kinds(value: Any) -> frozenset[str]:
    match value:
        case None:
            return frozenset({"null"})
        case bool():
            return frozenset({"boolean"})
        case int():
            return frozenset({"integer", "number"})
        case float():
            return frozenset({"number"})
        case str():
            return frozenset({"string"})
        case list():
            return frozenset({"array"})
    return frozenset({"object"})


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

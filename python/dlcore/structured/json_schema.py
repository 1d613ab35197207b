"""A client's JSON schema -> one that the grammar compiler enforces in full.

The compiler ignores some keywords silently. Those are refused here, so that what it accepts
is what the output keeps to. Where a schema leaves a type open, the type that its keywords speak
of is filled in: a narrower answer is still a valid one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 100

_REFUSED = (
    "multipleOf", "not", "if", "then", "else", "contains", "minContains", "maxContains",
    "dependentRequired", "dependentSchemas", "dependencies",
)  # fmt: skip
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "propertyNames", "unevaluatedProperties")
_TYPE_OF_KEYWORD = {
    "minimum": "number", "maximum": "number",
    "exclusiveMinimum": "number", "exclusiveMaximum": "number",
    "minLength": "string", "maxLength": "string", "pattern": "string",
    "items": "array", "prefixItems": "array", "minItems": "array", "maxItems": "array",
    "properties": "object", "required": "object", "additionalProperties": "object",
    "minProperties": "object", "maxProperties": "object", "patternProperties": "object",
    "propertyNames": "object",
}  # fmt: skip
# A schema with one of these says what it is without "type".
_TYPELESS = ("$ref", "enum", "const", *_SCHEMA_LISTS[:3])


class SchemaError(ValueError):
    """The schema asks for what cannot be enforced; the message names the keyword."""


def enforceable(schema: Any, depth: int = 0) -> Any:
    """A copy of `schema` to compile. Raises SchemaError."""
    if depth > MAX_DEPTH:
        raise SchemaError(f"the schema is nested deeper than {MAX_DEPTH} levels")
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise SchemaError(f"a schema must be an object, got {type(schema).__name__}")
    _refuse(schema)
    result = dict(schema)
    for key in _NAMED_SCHEMAS:
        if isinstance(schema.get(key), Mapping):
            result[key] = {n: enforceable(s, depth + 1) for n, s in schema[key].items()}
    for key in _SCHEMA_LISTS:
        if isinstance(schema.get(key), list):
            result[key] = [enforceable(s, depth + 1) for s in schema[key]]
    for key in _SCHEMAS:
        if isinstance(schema.get(key), Mapping):
            result[key] = enforceable(schema[key], depth + 1)
    _fill_in(result)
    return result


def _refuse(schema: Mapping[str, Any]) -> None:
    for keyword in _REFUSED:
        if keyword in schema:
            raise SchemaError(f'the keyword "{keyword}" cannot be enforced; leave it out')
    if schema.get("uniqueItems") is True:
        raise SchemaError('the keyword "uniqueItems" cannot be enforced; leave it out')
    combined = schema.get("allOf")
    if isinstance(combined, list) and len(combined) > 1:
        raise SchemaError('"allOf" with several schemas cannot be enforced; merge them into one')
    if "pattern" in schema and ("minLength" in schema or "maxLength" in schema):
        raise SchemaError('"pattern" cannot be combined with minLength or maxLength')


def _fill_in(schema: dict[str, Any]) -> None:
    if "type" not in schema and not any(key in schema for key in _TYPELESS):
        kinds = {kind for key, kind in _TYPE_OF_KEYWORD.items() if key in schema}
        if len(kinds) > 1:
            raise SchemaError(f'say which "type" is meant: {", ".join(sorted(kinds))}')
        if kinds:
            schema["type"] = kinds.pop()
    kind = schema.get("type")
    types = kind if isinstance(kind, list) else [kind]
    # Without these the compiler takes "no properties" and "no items" for "only empty".
    if "object" in types and not schema.keys() & {"properties", "patternProperties"}:
        schema.setdefault("additionalProperties", True)
    if "array" in types and "prefixItems" not in schema:
        schema.setdefault("items", True)

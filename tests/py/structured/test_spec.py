from __future__ import annotations

import json
from typing import Any

import pytest

from dlcore.sampling_params import ParameterError, StructuredOutputs
from dlcore.structured.json_schema import MAX_DEPTH, SchemaError, enforceable
from dlcore.structured.spec import MAX_SPEC_CHARS, grammar_spec


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 3},
        {"type": "array", "uniqueItems": True},
        {"not": {"type": "string"}},
        {"if": {"type": "string"}, "then": {}},
        {"properties": {"a": {"items": {"contains": {}}}}},
        {"allOf": [{"type": "object"}, {"required": ["a"]}]},
        {"$defs": {"x": {"dependentRequired": {}}}},
        {"type": "string", "pattern": "a+", "maxLength": 3},
        {"minimum": 3, "maxLength": 2},
        {"properties": {"a": 7}},
        [],
    ],
)
def test_what_cannot_be_enforced_is_refused(schema: Any) -> None:
    with pytest.raises(SchemaError):
        enforceable(schema)
    with pytest.raises(ParameterError, match="response_format"):
        grammar_spec(StructuredOutputs(json_schema=schema, param="response_format"))


@pytest.mark.parametrize(
    ("schema", "result"),
    [
        ({"minimum": 3}, {"minimum": 3, "type": "number"}),
        ({"maxLength": 3}, {"maxLength": 3, "type": "string"}),
        ({"type": "object"}, {"type": "object", "additionalProperties": True}),
        ({"type": "array"}, {"type": "array", "items": True}),
        ({"items": {}}, {"items": {}, "type": "array"}),
        (
            {"properties": {"not": {"type": "array"}}},
            {"properties": {"not": {"type": "array", "items": True}}, "type": "object"},
        ),
        ({"enum": [{"not": 1}]}, {"enum": [{"not": 1}]}),
        ({"$ref": "#/$defs/x", "$defs": {"x": {}}}, {"$ref": "#/$defs/x", "$defs": {"x": {}}}),
        (True, True),
    ],
)
def test_open_types_are_filled_in(schema: Any, result: Any) -> None:
    assert enforceable(schema) == result


def test_a_schema_may_not_be_nested_without_end() -> None:
    schema: dict[str, Any] = {}
    for _ in range(MAX_DEPTH + 1):
        schema = {"items": schema}
    with pytest.raises(SchemaError, match="nested deeper"):
        enforceable(schema)


@pytest.mark.parametrize(
    "wanted",
    [
        StructuredOutputs(),
        StructuredOutputs(regex="a", json_object=True),
        StructuredOutputs(json_schema="{"),
        StructuredOutputs(json_schema="[" * 100_000),
        StructuredOutputs(regex="a" * (MAX_SPEC_CHARS + 1)),
        StructuredOutputs(regex="a\0"),
        StructuredOutputs(regex="\ud800"),
        StructuredOutputs(choice=()),
        StructuredOutputs(choice=("a", "")),
        StructuredOutputs(choice=("a",) * 20_000),
        StructuredOutputs(json_schema=json.dumps({"enum": ["x" * 300_000]})),
    ],
)
def test_malformed_rules_are_parameter_errors(wanted: StructuredOutputs) -> None:
    with pytest.raises(ParameterError, match=r"^structured_outputs: "):
        grammar_spec(wanted)


def test_only_rules_of_bounded_cost_are_compiled_in_this_process() -> None:
    def small(**rule: Any) -> bool:
        return grammar_spec(StructuredOutputs(**rule)).is_small

    assert small(json_object=True)
    assert small(choice=("yes", "no"))
    assert small(json_schema={"properties": {"a": {"type": "string", "maxLength": 20}}})
    assert not small(json_schema={"type": "string", "maxLength": 10**9})
    assert not small(json_schema={"type": "array", "minItems": 10**6})
    assert not small(json_schema={"type": "string", "pattern": "(a|b)*"})
    assert not small(json_schema={"properties": {f"p{i}": {} for i in range(1000)}})
    assert not small(regex="a")
    assert not small(grammar='root ::= "a"')

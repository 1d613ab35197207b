"""What a request demands of the text's form -> StructuredOutputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlcore.sampling_params import StructuredOutputs
from dlcore.serve.errors import bad_request
from dlcore.serve.schemas.chat import ChatRequest, NamedTool, Tool
from dlcore.serve.schemas.common import ResponseFormat, SamplingFields, StructuredOutputsField


def constraint_of(fields: SamplingFields) -> StructuredOutputs | None:
    """From `response_format` or `structured_outputs`. Raises ApiError 400 for both at once."""
    by_format = _from_response_format(fields.response_format)
    given = fields.structured_outputs
    if given is None:
        return by_format
    if by_format is not None:
        raise bad_request(
            "structured_outputs: cannot be combined with response_format", "structured_outputs"
        )
    return _from_structured_outputs(given)


def forces_call(request: ChatRequest) -> bool:
    """The answer will be tool calls alone."""
    return request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)


def chat_constraint(request: ChatRequest) -> StructuredOutputs | None:
    """As above; a tool choice that forces a call comes first."""
    if not forces_call(request):
        return constraint_of(request)
    tools = request.tools or []
    at_most_one = request.parallel_tool_calls is False
    if isinstance(request.tool_choice, NamedTool):
        name, at_most_one = request.tool_choice.function.name, True
        tools = [tool for tool in tools if tool.function.name == name]
    schema = calls_schema(tools, at_most_one=at_most_one)
    return StructuredOutputs(json_schema=schema, param="tools")


def parameters_schema(tool: Tool) -> dict[str, Any]:
    return tool.function.parameters or {"type": "object"}


def calls_schema(tools: Sequence[Tool], *, at_most_one: bool) -> dict[str, Any]:
    """A list of `{"name": ..., "parameters": ...}`, one alternative per tool."""
    alternatives = []
    definitions: dict[str, Any] = {}
    for tool in tools:
        parameters = dict(parameters_schema(tool))
        # References inside a tool's schema start at the root of the schema: move them there.
        own = parameters.pop("$defs", {})
        for name in own.keys() & definitions.keys():
            if own[name] != definitions[name]:
                where = f"tools: {tool.function.name!r} and another tool define $defs/{name}"
                raise bad_request(f"{where} differently; rename one", "tools")
        definitions |= own
        alternatives.append(
            {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "enum": [tool.function.name]},
                    "parameters": parameters,
                },
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": alternatives}}
    if at_most_one:
        schema["maxItems"] = 1
    if definitions:
        schema["$defs"] = definitions
    return schema


def check_tools(request: ChatRequest) -> None:
    """Raises ApiError 400 for a choice among tools that were not given."""
    names = [tool.function.name for tool in request.tools or []]
    if len(set(names)) != len(names):
        raise bad_request("tools: two tools have the same name", "tools")
    choice = request.tool_choice
    if choice in (None, "none"):
        return
    if not names:
        raise bad_request("tool_choice: needs tools", "tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise bad_request(
            f"tool_choice: no tool is named {choice.function.name!r}", "tool_choice.function.name"
        )


def _from_response_format(given: ResponseFormat | None) -> StructuredOutputs | None:
    if given is None or given.type == "text":
        return None
    param = "response_format"
    if given.type == "structural_tag":
        return StructuredOutputs(structural_tag=_structural_tag(given), param=param)
    if given.type == "json_schema" and given.json_schema is None:
        raise bad_request(
            "response_format.json_schema: is needed when type is json_schema",
            "response_format.json_schema",
        )
    schema = given.json_schema.schema if given.json_schema is not None else None
    if given.type == "json_object" or schema is None:
        return StructuredOutputs(json_object=True, param=param)
    return StructuredOutputs(json_schema=schema, param=param)


def _structural_tag(given: ResponseFormat) -> dict[str, Any]:
    if given.format is not None:
        return {"type": "structural_tag", "format": given.format}
    if given.structures is None or given.triggers is None:
        raise bad_request(
            "response_format: structural_tag needs `format`, or `structures` and `triggers`",
            "response_format",
        )
    return {
        "type": "structural_tag",
        "structures": given.structures,
        "triggers": given.triggers,
    }


def _from_structured_outputs(given: StructuredOutputsField) -> StructuredOutputs:
    chosen = [name for name in given.__struct_fields__ if getattr(given, name) not in (None, False)]
    if len(chosen) != 1:
        raise bad_request(
            "structured_outputs: give exactly one of json, json_object, regex, choice, grammar, "
            f"structural_tag (got {len(chosen)})",
            "structured_outputs",
        )
    return StructuredOutputs(
        json_schema=given.json,
        json_object=bool(given.json_object),
        regex=given.regex,
        choice=tuple(given.choice) if given.choice is not None else None,
        grammar=given.grammar,
        structural_tag=given.structural_tag,
    )

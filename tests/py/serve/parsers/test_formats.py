"""Each format, as its model's chat template writes it."""

from __future__ import annotations

import json

import pytest

from dlcore.serve.parsers.base import ToolContext, parse
from dlcore.serve.parsers.events import ParsedMessage
from dlcore.serve.parsers.registry import (
    TOOL_PARSERS,
    AnswerFormat,
    choose_reasoning_parser,
    choose_tool_parser,
)

TOOLS = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "when": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "options": {"type": "object"},
        },
    },
    "ping": {"type": "object", "properties": {}},
}


def message(parser: str, text: str) -> ParsedMessage:
    ids = iter(range(100))
    return parse(TOOL_PARSERS[parser](ToolContext(TOOLS, lambda: f"id{next(ids)}")), text)


def calls(parsed: ParsedMessage) -> list[tuple[str, object]]:
    assert all(call.complete for call in parsed.tool_calls)
    return [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls]


TWO_CALLS = {
    "hermes": """I'll look.
<tool_call>
{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}
</tool_call>
<tool_call>
{"name": "ping", "arguments": {}}
</tool_call>""",
    "qwen3_coder": """I'll look.

<tool_call>
<function=get_weather>
<parameter=city>
Paris
</parameter>
<parameter=days>
3
</parameter>
</function>
</tool_call>
<tool_call>
<function=ping>
</function>
</tool_call>""",
    "deepseek_v3": "I'll look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
    'get_weather\n```json\n{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜>\n'
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n{}\n```<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>",
    "deepseek_v31": "I'll look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
    '{"city": "Paris", "days": 3}<｜tool▁call▁end｜><｜tool▁call▁begin｜>ping<｜tool▁sep｜>{}'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v32": """I'll look.

<｜DSML｜function_calls>
<｜DSML｜invoke name="get_weather">
<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="ping">
</｜DSML｜invoke>
</｜DSML｜function_calls>""",
    "kimi_k2": "I'll look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    '<|tool_call_argument_begin|>{"city": "Paris", "days": 3}<|tool_call_end|><|tool_call_begin|>'
    "functions.ping:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
    "glm45": """I'll look.
<tool_call>get_weather
<arg_key>city</arg_key>
<arg_value>Paris</arg_value>
<arg_key>days</arg_key>
<arg_value>3</arg_value>
</tool_call>
<tool_call>ping
</tool_call>""",
    "glm47": "I'll look.<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value>"
    "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call><tool_call>ping</tool_call>",
}


@pytest.mark.parametrize("parser", TWO_CALLS)
def test_content_then_two_calls(parser: str) -> None:
    parsed = message(parser, TWO_CALLS[parser])
    assert parsed.content == "I'll look."
    assert calls(parsed) == [("get_weather", {"city": "Paris", "days": 3}), ("ping", {})]


@pytest.mark.parametrize("parser", sorted(TOOL_PARSERS))
def test_text_without_calls_is_content_unchanged(parser: str) -> None:
    for text in (
        "",
        " ",
        "Hello!\n",
        "  a < b and c > d\n\n<tool",
        "<|tool",
        "{",
        "[1, 2]",
        "\n{}",
    ):
        parsed = message(parser, text)
        assert parsed.content == text
        assert parsed.tool_calls == []


def test_text_between_and_after_calls_is_content() -> None:
    call = '<tool_call>{"name": "ping", "arguments": {}}</tool_call>'
    parsed = message("hermes", f"one \n{call}\n two\n {call} three")
    assert parsed.content == "onetwothree"
    assert [c[0] for c in calls(parsed)] == ["ping", "ping"]


def test_end_tags_inside_of_json_strings_do_not_end_a_call() -> None:
    city = 'a </tool_call> "}]{ \\ b'
    arguments = json.dumps({"city": city})
    parsed = message(
        "hermes", f'<tool_call>{{"name":"get_weather","arguments":{arguments}}}</tool_call>'
    )
    assert calls(parsed) == [("get_weather", {"city": city})]
    city = "a <｜tool▁call▁end｜><｜tool▁calls▁end｜> b"
    arguments = json.dumps({"city": city}, ensure_ascii=False)
    parsed = message(
        "deepseek_v31",
        f"<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>",
    )
    assert calls(parsed) == [("get_weather", {"city": city})]


def test_arguments_may_come_before_the_name_or_as_a_string() -> None:
    parsed = message(
        "hermes", '<tool_call>{"arguments": {"city": "Rome"}, "name": "get_weather"}</tool_call>'
    )
    assert calls(parsed) == [("get_weather", {"city": "Rome"})]
    parsed = message(
        "hermes", '<tool_call>{"name": "ping", "arguments": "{\\"a\\": 1}"}</tool_call>'
    )
    assert calls(parsed) == [("ping", {"a": 1})]


@pytest.mark.parametrize(
    ("inside", "arguments"),
    [
        ('{"name": "ping"}', "{}"),
        ('{"name": "ping", "arguments": null}', "{}"),
        ('{"name": "ping", "arguments": {"a": 1}', '{"a": 1}'),  # a brace is missing
        ('{"name": "ping", "arguments": {"a": 1', '{"a": 1'),
        ('{"name": "ping", "arguments": {\'a\': 1}', "{'a': 1}"),
    ],
)
def test_broken_hermes_calls_keep_what_the_model_wrote(inside: str, arguments: str) -> None:
    parsed = message("hermes", f"<tool_call>{inside}</tool_call> after")
    assert [(c.name, c.arguments) for c in parsed.tool_calls] == [("ping", arguments)]
    assert parsed.content == "after"


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>no json</tool_call>",
        '<tool_call>\n{"nme": "ping"}\n</tool_call>',
        '<tool_call>{"na',
        "<tool_call>",
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
    ],
)
def test_what_is_no_call_stays_content(text: str) -> None:
    parsed = message("hermes", f"before {text}")
    assert parsed.content == f"before {text}"
    assert parsed.tool_calls == []


def test_a_call_cut_off_by_the_length_limit_keeps_its_beginning() -> None:
    parsed = message("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Pa')
    (call,) = parsed.tool_calls
    assert (call.name, call.arguments, call.complete) == ("get_weather", '{"city": "Pa', False)
    parsed = message("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nPa")
    (call,) = parsed.tool_calls
    assert (call.arguments, call.complete) == ('{"city": "Pa', False)


def test_tagged_values_take_the_type_of_the_schema() -> None:
    def value(name: str, text: str) -> object:
        tag = f"<arg_key>{name}</arg_key><arg_value>{text}</arg_value>"
        return calls(message("glm45", f"<tool_call>get_weather\n{tag}</tool_call>"))[0][1][name]

    assert value("city", "42") == "42"
    assert value("city", ' "quoted"\n') == ' "quoted"\n'
    assert value("days", "42") == 42
    assert value("days", "many") == "many"
    assert value("when", "null") is None
    assert value("when", "42") == "42"
    assert value("options", '{"a": [1, null]}') == {"a": [1, None]}
    assert value("undeclared", "true") == "true"


def test_qwen3_coder_values_keep_their_inner_lines() -> None:
    code = "def f():\n\n    return '<b>'\n"
    parsed = message(
        "qwen3_coder",
        f"<tool_call>\n<function=get_weather>\n<parameter=city>\n{code}\n</parameter>\n</function>\n"
        "</tool_call>",
    )
    assert calls(parsed) == [("get_weather", {"city": code})]


def test_qwen3_coder_forgives_missing_tags() -> None:
    parsed = message(
        "qwen3_coder",
        "<function=get_weather>\n<parameter=city>\nParis\n<parameter=days>\n3\n</function>",
    )
    assert calls(parsed) == [("get_weather", {"city": "Paris", "days": 3})]


def test_kimi_keeps_its_ids() -> None:
    parsed = message("kimi_k2", TWO_CALLS["kimi_k2"])
    assert [call.id for call in parsed.tool_calls] == [
        "functions.get_weather:0",
        "functions.ping:1",
    ]


@pytest.mark.parametrize(
    "text",
    [
        '[{"name": "ping", "parameters": {}}, {"name": "ping", "parameters": {"a": [1]}}]',
        '{"name": "ping", "arguments": {}}; {"name": "ping", "arguments": {"a": [1]}}',
        '<|python_tag|>{"name": "ping", "parameters": {}}\n'
        '{"name": "ping", "parameters": {"a": [1]}}',
    ],
)
def test_plain_json_calls(text: str) -> None:
    parsed = message("json", text)
    assert calls(parsed) == [("ping", {}), ("ping", {"a": [1]})]
    assert parsed.content == ""


@pytest.mark.parametrize(
    ("prompt", "text", "reasoning", "content"),
    [
        ("", "<think>\nhm\n</think>\n\nyes", "hm", "yes"),
        ("<think>\n", "hm </think>yes ", "hm", "yes "),
        ("<think>\n\n</think>\n\n", "yes", "", "yes"),
        ("<think>", "cut off", "cut off", ""),
        ("", "no tags", "", "no tags"),
        ("<think>", "</think>\nyes", "", "yes"),
        ("<think>", "a < b, </thin> \n\n c</think>", "a < b, </thin> \n\n c", ""),
        ("user: say <think> twice", "ok", "", "ok"),
    ],
)
def test_reasoning(prompt: str, text: str, reasoning: str, content: str) -> None:
    parser = AnswerFormat(reasoning_parser="qwen3").parser(prompt, None)
    assert parser is not None
    parsed = parse(parser, text)
    assert (parsed.reasoning, parsed.content) == (reasoning, content)


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [("assistant\n", False), ("assistant\n<think>\n", True), ("<think>\n\n</think>\n\n", None)],
)
def test_reasoning_before_a_constrained_answer_stays_free(
    prompt: str, is_open: bool | None
) -> None:
    span = AnswerFormat(reasoning_parser="qwen3").reasoning_span(prompt)
    assert (None if span is None else span.is_open) == is_open
    assert AnswerFormat().reasoning_span(prompt) is None


def test_reasoning_then_calls_and_only_the_first_when_not_parallel() -> None:
    text = f"<think>{TWO_CALLS['hermes']}</think>{TWO_CALLS['hermes']}"
    form = AnswerFormat("hermes", "qwen3")
    both = form.parser("", TOOLS)
    first = form.parser("", TOOLS, parallel_tool_calls=False)
    assert both is not None
    assert first is not None
    parsed = parse(both, text)
    assert parsed.reasoning == TWO_CALLS["hermes"]
    assert [c.name for c in parsed.tool_calls] == ["get_weather", "ping"]
    assert [c.name for c in parse(first, text).tool_calls] == ["get_weather"]


def test_kimi_calls_end_the_reasoning() -> None:
    parser = AnswerFormat("kimi_k2", "kimi_k2").parser("<think>", TOOLS)
    assert parser is not None
    parsed = parse(parser, "let me see" + TWO_CALLS["kimi_k2"].removeprefix("I'll look."))
    assert parsed.reasoning == "let me see"
    assert [c.name for c in parsed.tool_calls] == ["get_weather", "ping"]


def test_no_parser_where_nothing_is_to_parse() -> None:
    assert AnswerFormat().parser("", TOOLS) is None
    assert AnswerFormat("hermes").parser("", None) is None
    assert AnswerFormat().parser("", TOOLS, constrained=True) is not None


@pytest.mark.parametrize(
    ("model_type", "template", "tools", "reasoning"),
    [
        ("qwen3", "<tool_call> ... <think>", "hermes", "qwen3"),
        ("qwen3_moe", "<tool_call>\\n<function=", "qwen3_coder", None),
        (
            "deepseek_v3",
            "<｜tool▁calls▁begin｜>function<｜tool▁sep｜>\\n```json",
            "deepseek_v3",
            None,
        ),
        ("deepseek_v3", "<｜tool▁sep｜>{}</think>", "deepseek_v31", "qwen3"),
        ("deepseek_v32", None, "deepseek_v32", None),
        ("kimi_k2", "<|tool_call_argument_begin|><think>", "kimi_k2", "kimi_k2"),
        ("glm4_moe", "<tool_call><arg_key>", "glm45", None),
        ("llama", "", "llama3_json", None),
        ("gpt2", None, None, None),
    ],
)
def test_a_model_s_format_is_found(
    model_type: str, template: str | None, tools: str | None, reasoning: str | None
) -> None:
    assert choose_tool_parser(model_type, template) == tools
    assert choose_reasoning_parser(model_type, template) == reasoning

"""The law of the parsers: however an answer is cut into chunks, the message is the same.

The texts are made of a format's markers and of what may stand between them, so most are
broken in some way: truncated, nested, out of order, with end tags in strings.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcore.serve.parsers.base import Parser, ToolContext, parse
from dlcore.serve.parsers.events import (
    ContentDelta,
    Event,
    ParsedMessage,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from dlcore.serve.parsers.registry import TOOL_PARSERS, AnswerFormat

TOOLS = {
    "f": {"properties": {"s": {"type": "string"}, "n": {"type": "integer"}, "x": {}}},
    "g": {"properties": {"s": {"type": ["string", "null"]}}},
}

MARKERS = {
    "hermes": ["<tool_call>", "</tool_call>", '{"name": "f", "arguments": ', '"name"', "}\n"],
    "qwen3_coder": [
        "<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=s>\n",
        "<parameter=n>", "\n</parameter>", "</parameter>",
    ],
    "deepseek_v3": [
        "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n",
        "<｜tool▁call▁end｜>", "\n```", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",
    ],
    "deepseek_v31": [
        "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
        "f<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
    ],
    "deepseek_v32": [
        "<｜DSML｜function_calls>", "</｜DSML｜function_calls>", '<｜DSML｜invoke name="f">',
        "</｜DSML｜invoke>", '<｜DSML｜parameter name="s" string="true">', "</｜DSML｜parameter>",
        '<｜DSML｜parameter name="n" string="false">', '<｜DSML｜parameter name="n">',
    ],
    "kimi_k2": [
        "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
        "functions.f:0<|tool_call_argument_begin|>", "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    ],
    "glm45": [
        "<tool_call>f\n", "<tool_call>", "</tool_call>", "<arg_key>", "s</arg_key>",
        "n</arg_key>\n", "<arg_value>", "</arg_value>",
    ],
    "json": [
        "[", "]", '{"name": "f", "parameters": ', '{"name": "g"}', "; ", ",", "<|python_tag|>",
    ],
}  # fmt: skip

JSON_TEXT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3),
    max_leaves=6,
).map(lambda value: json.dumps(value, ensure_ascii=False))
PROSE = st.text(st.sampled_from(list('ab<>/{}[]"\\\n \té漢🦊=:,_')), max_size=12)


def texts(markers: list[str]) -> st.SearchStrategy[str]:
    """Markers, JSON (also inside of strings, also holding markers) and prose, in any order."""
    quoted = st.lists(st.sampled_from(markers) | PROSE, max_size=3).map(
        lambda parts: json.dumps({"s": "".join(parts)}, ensure_ascii=False)
    )
    piece = st.sampled_from(markers) | st.sampled_from(markers) | JSON_TEXT | quoted | PROSE
    whole = st.lists(piece, max_size=14).map("".join)
    return st.tuples(whole, st.integers(0, 30)).map(lambda p: p[0][: len(p[0]) - p[1]] or p[0])


def chunks(text: str, cuts: list[int]) -> list[str]:
    """`text` cut at `cuts` (any integers); cut positions may repeat, giving empty chunks."""
    at = sorted(c % (len(text) + 1) for c in cuts)
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


def stream(parser: Parser, pieces: list[str]) -> ParsedMessage:
    message = ParsedMessage()
    events: list[Event] = []
    for piece in pieces:
        events += parser.push(piece)
    events += parser.finish()
    check_order(events)
    message.add(events)
    return message


def check_order(events: list[Event]) -> None:
    """Calls come one after the other, each started before its arguments and ended once."""
    open_call, started = None, 0
    for event in events:
        match event:
            case ToolCallStart(index):
                assert index == started
                open_call, started = index, started + 1
            case ToolCallArguments(index, text):
                assert index == open_call
                assert text
            case ToolCallEnd(index):
                assert index == open_call
                open_call = None
            case ContentDelta(text) | ReasoningDelta(text):
                assert text


def tool_parser(name: str) -> Parser:
    ids = iter(range(10**6))
    return TOOL_PARSERS[name](ToolContext(TOOLS, lambda: f"id{next(ids)}"))


def check_law(make: Callable[[], Parser], text: str, cuts: list[int]) -> None:
    whole = parse(make(), text)
    assert stream(make(), chunks(text, cuts)) == whole
    assert stream(make(), list(text)) == whole


@pytest.mark.parametrize("name", MARKERS)
def test_every_way_of_cutting_gives_the_same_message(name: str) -> None:
    @settings(max_examples=400, deadline=None)
    @given(texts(MARKERS[name]), st.lists(st.integers(0, 10**4), max_size=8))
    def law(text: str, cuts: list[int]) -> None:
        check_law(lambda: tool_parser(name), text, cuts)

    law()


@pytest.mark.parametrize("in_prompt", [True, False])
@pytest.mark.parametrize("name", ["hermes", "kimi_k2", "deepseek_v31"])
def test_the_same_with_reasoning_before_it(name: str, in_prompt: bool) -> None:
    form = AnswerFormat(name, "kimi_k2" if name == "kimi_k2" else "qwen3")

    def without_ids(pieces: list[str]) -> ParsedMessage:
        parser = form.parser("<think>" if in_prompt else "", TOOLS)
        assert parser is not None
        message = stream(parser, pieces)
        for call in message.tool_calls:
            call.id = ""
        return message

    @settings(max_examples=200, deadline=None)
    @given(
        texts([*MARKERS[name], "<think>", "</think>", "\n"]),
        st.lists(st.integers(0, 10**4), max_size=8),
    )
    def law(text: str, cuts: list[int]) -> None:
        whole = without_ids([text])
        assert without_ids(chunks(text, cuts)) == whole
        assert without_ids(list(text)) == whole

    law()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["f", "g"]),
            st.dictionaries(st.text(max_size=6), st.text(max_size=20) | st.integers(), max_size=3),
        ),
        max_size=3,
    ),
    st.lists(st.integers(0, 10**4), max_size=8),
)
def test_well_formed_hermes_calls_come_back_exactly(
    calls: list[tuple[str, dict[str, object]]], cuts: list[int]
) -> None:
    objects = [json.dumps({"name": n, "arguments": a}, ensure_ascii=False) for n, a in calls]
    text = "".join(f"<tool_call>\n{o}\n</tool_call>\n" for o in objects)
    message = stream(tool_parser("hermes"), chunks(text, cuts))
    assert [(c.name, json.loads(c.arguments)) for c in message.tool_calls] == calls
    assert message.content == ""

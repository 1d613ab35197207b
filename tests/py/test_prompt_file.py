from __future__ import annotations

import json

import pytest

from dlcore.prompt_file import PromptFileError, read_prompts
from dlcore.sampling_params import SamplingParams

DEFAULTS = SamplingParams(max_tokens=7)


def read_one(row: object) -> object:
    text = row if isinstance(row, str) else json.dumps(row)
    return next(read_prompts([text], DEFAULTS, jsonl=True))


def test_a_text_file_is_one_message_a_line_and_empty_lines_do_not_count() -> None:
    lines = list(read_prompts(["a\n", "\n", " b \r\n"], DEFAULTS, jsonl=False))
    assert [(p.number, p.text, p.asks_chat) for p in lines] == [(1, "a", True), (3, " b ", True)]
    assert all(p.params is DEFAULTS for p in lines)


def test_a_json_line_may_change_any_sampling_parameter() -> None:
    row = {"prompt": "a", "id": 9, "temperature": 0, "stop": ["x"], "logit_bias": {"5": 1.5}}
    (line,) = read_prompts([json.dumps(row)], DEFAULTS, jsonl=True)
    assert (line.text, line.id, line.asks_chat) == ("a", 9, False)
    assert (line.params.temperature, line.params.stop, line.params.max_tokens) == (0, ("x",), 7)
    assert line.params.logit_bias == {5: 1.5}


def test_a_prompt_comes_in_three_ways() -> None:
    rows = [{"prompt": "a"}, {"messages": [{}]}, {"prompt_token_ids": [1]}]
    lines = list(read_prompts(map(json.dumps, rows), DEFAULTS, jsonl=True))
    assert [(p.text, p.messages, p.token_ids) for p in lines] == [
        ("a", None, None),
        (None, [{}], None),
        (None, None, [1]),
    ]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "not valid JSON"),
        ([1], "JSON object"),
        ({}, "exactly one of"),
        ({"prompt": "a", "messages": []}, "exactly one of"),
        ({"prompt": 3}, "prompt must be"),
        ({"prompt": "a", "temprature": 1}, "unknown field temprature"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "top_p": -1}, "top_p"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "invalid literal"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_wrong(row: object, why: str) -> None:
    with pytest.raises(PromptFileError, match="line 1: ") as caught:
        read_one(row)
    assert why in str(caught.value)

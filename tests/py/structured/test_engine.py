"""Constrained requests through the whole engine, with the bundled model on the CPU."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest

from dlcore.async_llm import AsyncLLM
from dlcore.llm import LLM
from dlcore.outputs import RequestOutput
from dlcore.sampling_params import (
    ParameterError,
    ReasoningSpan,
    SamplingParams,
    StructuredOutputs,
)
from dlcore.serve.parsers.base import ToolContext, parse
from dlcore.serve.parsers.json_tools import JsonToolParser
from dlcore.structured import mask_worker

OPTIONS: dict[str, Any] = {
    "dtype": "float32", "device": "cpu", "max_model_len": 1024, "max_num_seqs": 64,
    "num_kv_blocks": 4096,
}  # fmt: skip


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(**OPTIONS) as llm:
        yield llm


def constrained(
    *,
    max_tokens: int = 200,
    temperature: float = 1.5,
    seed: int | None = 0,
    reasoning: ReasoningSpan | None = None,
    n: int = 1,
    **rule: Any,
) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        n=n,
        structured_outputs=StructuredOutputs(reasoning=reasoning, **rule),
    )


def free(i: int) -> SamplingParams:
    return SamplingParams(max_tokens=24, temperature=0.0 if i % 2 else 0.9, seed=i)


def texts(outputs: list[RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Every kind of value, each of bounded length so that the answer comes to its end."""
    kinds = ["string", "integer", "boolean", "null", "enum", "const"]
    kind = rng.choice(kinds + (["object", "array", "anyOf"] * 2 if depth < 2 else []))
    match kind:
        case "string":
            return {"type": "string", "maxLength": rng.randrange(1, 12)}
        case "integer":
            low = rng.randrange(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(1, 200)}
        case "enum":
            return {"enum": rng.sample(["a", 1, None, True, "two words", 2.5], 3)}
        case "const":
            return {"const": rng.choice(["x", 7, False])}
        case "array":
            return {
                "type": "array",
                "items": random_schema(rng, depth + 1),
                "minItems": 1,
                "maxItems": 3,
            }
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
        case "object":
            names = rng.sample(["id", "name", "tags", "é", "a b"], rng.randrange(1, 4))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth + 1) for name in names},
                "required": names[: rng.randrange(len(names) + 1)],
                "additionalProperties": False,
            }
    return {"type": kind}


def test_answers_validate_against_random_schemas(llm: LLM) -> None:
    rng = random.Random(5)
    schemas = [random_schema(rng) for _ in range(40)]
    params = [constrained(json_schema=s, seed=i, max_tokens=600) for i, s in enumerate(schemas)]
    outputs = llm.generate(["Say anything"] * len(params), params, use_tqdm=False)
    for schema, output in zip(schemas, outputs, strict=True):
        completion = output.outputs[0]
        assert completion.finish_reason == "stop", (schema, completion.text)
        jsonschema_rs.validate(schema, json.loads(completion.text))


def test_regex_choice_grammar_and_structural_tags_are_kept(llm: LLM) -> None:
    tag = {
        "type": "structural_tag",
        "format": {
            "type": "tag",
            "begin": "<answer>",
            "content": {"type": "json_schema", "json_schema": {"type": "boolean"}},
            "end": "</answer>",
        },
    }
    rules: list[tuple[dict[str, Any], str]] = [
        ({"regex": r"\d{3}-[a-f]{2,5}"}, r"\d{3}-[a-f]{2,5}"),
        ({"choice": ("yes", "no", 'perhaps "so"')}, r'yes|no|perhaps "so"'),
        ({"grammar": 'root ::= "a" ("b" | "c"){1,4} "d"'}, r"a[bc]{1,4}d"),
        ({"structural_tag": tag}, r"<answer>(true|false)</answer>"),
    ]
    for seed in range(3):
        params = [constrained(seed=seed, **rule) for rule, _ in rules]
        for (_, pattern), text in zip(
            rules, texts(llm.generate(["x"] * len(rules), params, use_tqdm=False)), strict=True
        ):
            assert re.fullmatch(pattern, text), text


def test_json_object_allows_any_object_and_nothing_else(llm: LLM) -> None:
    params = [constrained(json_object=True, seed=i, max_tokens=80) for i in range(8)]
    for output in llm.generate(["x"] * 8, params, use_tqdm=False):
        completion = output.outputs[0]
        assert completion.text.startswith("{")
        if completion.finish_reason == "stop":
            assert isinstance(json.loads(completion.text), dict)


def test_forced_tool_calls_are_valid_calls(llm: LLM) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 10}, "days": {"enum": [1, 2]}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    calls = {
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"name": {"enum": [name]}, "parameters": parameters},
                    "required": ["name", "parameters"],
                    "additionalProperties": False,
                }
                for name in ("get_weather", "get_news")
            ]
        },
    }
    params = [constrained(json_schema=calls, seed=i) for i in range(10)]
    for text in texts(llm.generate(["weather"] * 10, params, use_tqdm=False)):
        message = parse(JsonToolParser(ToolContext({})), text)
        assert message.content == ""
        assert 1 <= len(message.tool_calls) <= 2
        for call in message.tool_calls:
            assert call.complete
            assert call.name in ("get_weather", "get_news")
            jsonschema_rs.validate(parameters, json.loads(call.arguments))


def test_requests_do_not_change_each_other_in_a_mixed_batch(llm: LLM) -> None:
    prompts = [f"What is {i} + {i * 3}?" for i in range(50)]
    rules: list[dict[str, Any]] = [{"regex": r"\d+ apples"}, {"choice": ("one", "two", "three")}]
    params = [
        free(i) if i % 2 else constrained(seed=i, max_tokens=24, **rules[i // 2 % 2])
        for i in range(50)
    ]
    together = texts(llm.generate(prompts, params, use_tqdm=False))
    alone = [
        llm.generate(prompt, param, use_tqdm=False)[0].outputs[0].text
        for prompt, param in zip(prompts, params, strict=True)
    ]
    assert together == alone
    assert llm._session.rules._service is not None
    assert llm._session.rules._service.num_sequences == 0


def test_every_one_of_n_completions_follows_the_rule(llm: LLM) -> None:
    params = constrained(regex="[a-z]{3}", n=5)
    (output,) = llm.generate("a prompt longer than one block of sixteen tokens", params)
    assert all(re.fullmatch("[a-z]{3}", c.text) for c in output.outputs)
    assert len({c.text for c in output.outputs}) > 1


def test_a_complete_answer_ends_even_when_eos_is_ignored(llm: LLM) -> None:
    params = SamplingParams(
        max_tokens=50,
        temperature=0.0,
        ignore_eos=True,
        structured_outputs=StructuredOutputs(regex="[ab]{4}"),
    )
    completion = llm.generate("x", params)[0].outputs[0]
    assert re.fullmatch("[ab]{4}", completion.text)
    assert completion.finish_reason == "stop"


def test_open_reasoning_is_free_and_the_answer_is_not(llm: LLM) -> None:
    tokenizer = llm.tokenizer
    assert tokenizer is not None
    end = tokenizer.token_to_id("</think>")
    assert end is not None
    params = SamplingParams(
        max_tokens=30,
        temperature=0.0,
        logit_bias={end: 100.0},
        structured_outputs=StructuredOutputs(
            choice=("yes", "no"), reasoning=ReasoningSpan(is_open=True)
        ),
    )
    text = llm.generate("<think>", params)[0].outputs[0].text
    assert text in ("</think>yes", "</think>no")
    # Without the end of the reasoning nothing is constrained.
    free_params = replace(params, logit_bias=None)
    assert llm.generate("<think>", free_params)[0].outputs[0].finish_reason == "length"


def test_reasoning_may_be_left_out(llm: LLM) -> None:
    params = constrained(choice=("yes", "no"), reasoning=ReasoningSpan(), temperature=0.0)
    assert texts(llm.generate("x", params)) in (["yes"], ["no"])


@pytest.mark.parametrize("rule", [{"regex": "(a"}, {"json_schema": {"type": "nothing"}}, {}])
def test_a_bad_rule_is_a_parameter_error(llm: LLM, rule: dict[str, Any]) -> None:
    with pytest.raises(ParameterError) as error:
        llm.generate("x", constrained(param="response_format", **rule))
    assert error.value.param == "response_format"
    assert texts(llm.generate("x", constrained(choice=("fine",)))) == ["fine"]


def test_a_rule_whose_masks_take_too_long_fails_alone(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = texts(llm.generate("17 + 25", free(1)))
    monkeypatch.setattr(mask_worker, "SLOW_MASK_S", 0.0)
    monkeypatch.setattr(mask_worker, "MAX_MASK_S", 0.0)
    failed, fine = llm.generate(["x", "17 + 25"], [constrained(regex="a{9}"), free(1)])
    assert failed.outputs[0].finish_reason == "error"
    assert failed.error
    assert texts([fine]) == expected


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(**OPTIONS) as llm:
        monkeypatch.setitem(__import__("sys").modules, "dlcore.structured.service", None)
        with pytest.raises(ParameterError, match="pip install"):
            llm.generate("x", constrained(choice=("a",)))


async def test_free_requests_do_not_wait_for_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    fill = mask_worker._fill

    def slow_fill(supply: mask_worker.Supply, row: Any) -> float:
        time.sleep(0.1)
        return fill(supply, row)

    monkeypatch.setattr(mask_worker, "_fill", slow_fill)
    engine = AsyncLLM(**OPTIONS)
    try:
        seen: list[str] = []

        async def run(name: str, params: SamplingParams) -> None:
            async for output in engine.generate("x", params, name):
                seen.extend(name * len(output.outputs[0].token_ids))

        rule = StructuredOutputs(regex="a{200}")
        slow = SamplingParams(max_tokens=20, ignore_eos=True, structured_outputs=rule)
        await asyncio.gather(
            run("s", slow), run("f", SamplingParams(max_tokens=200, ignore_eos=True, seed=1))
        )
        # Every token of the slow one costs 100 ms; the free one needs none of them.
        last_free = len(seen) - 1 - seen[::-1].index("f")
        assert seen.count("f") == 200
        assert seen[:last_free].count("s") < 20
    finally:
        await engine.close()


async def test_compiling_does_not_hold_up_the_event_loop_and_streams_end_clean() -> None:
    engine = AsyncLLM(**OPTIONS)
    try:
        rules = engine._session.rules

        async def run(i: int) -> str:
            params = constrained(regex=rf"[a-z]{{1,{i + 1}}}\d", seed=i)
            text = ""
            async for output in engine.generate("x", params, str(i)):
                text += output.outputs[0].text
            return text

        async def longest_pause() -> float:
            longest = 0.0
            while True:
                before = time.monotonic()
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    return longest
                longest = max(longest, time.monotonic() - before)

        pulse = asyncio.create_task(longest_pause())
        await asyncio.sleep(0)
        found = await asyncio.gather(*(run(i) for i in range(6)))
        pulse.cancel()
        # Starting the compiler's process alone takes seconds.
        assert await pulse < 1.5
        for i, text in enumerate(found):
            assert re.fullmatch(rf"[a-z]{{1,{i + 1}}}\d", text), text

        stream = engine.generate("x", constrained(regex="a{1000}", max_tokens=500), "left")
        await anext(stream)
        await stream.aclose()
        assert rules._service is not None
        assert rules._service.num_sequences == 0
    finally:
        await engine.close()

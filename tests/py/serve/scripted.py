"""A model that thinks, calls tools when it is given some, and obeys a JSON constraint."""

from __future__ import annotations

import json

from serve.fake_client import FakeEngine

from dlcore.sampling_params import SamplingParams

THOUGHT = "The user wants to know the weather."
SAID = "I will look."
CALLS = [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Zürich ☔"})]
PLAIN = "It is sunny in Paris."

WEATHER = {
    "name": "get_weather",
    "description": "Current weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


def reply(prompt: str, params: SamplingParams) -> str:
    constraint = params.structured_outputs
    if constraint is not None and isinstance(constraint.json_schema, dict):
        if constraint.json_schema.get("type") == "array":
            calls = [{"name": n, "parameters": a} for n, a in CALLS]
            return json.dumps(calls[: constraint.json_schema.get("maxItems", 9)])
        return '{"city": "Paris", "degrees": 21}'
    thinks = "<think></think>" not in prompt.split("assistant\n")[-1]
    thought = f"<think>\n{THOUGHT}\n</think>\n\n" if thinks else ""
    if "get_weather" not in prompt or "<|im_start|>tool" in prompt:
        return thought + PLAIN
    return thought + SAID + "".join(_call(name, arguments) for name, arguments in CALLS)


def _call(name: str, arguments: dict[str, str]) -> str:
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"\n<tool_call>\n{call}\n</tool_call>"


def scripted_engine(delay: float = 0.0) -> FakeEngine:
    return FakeEngine(script=reply, delay=delay)

"""Formats by name, and which one a model speaks.

The names are those of vLLM's --tool-call-parser and --reasoning-parser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlcore.sampling_params import ReasoningSpan
from dlcore.serve.parsers.base import Parser, ToolContext, ToolParser
from dlcore.serve.parsers.deepseek_v3 import DeepSeekV3ToolParser
from dlcore.serve.parsers.deepseek_v31 import DeepSeekV31ToolParser
from dlcore.serve.parsers.deepseek_v32 import DeepSeekV32ToolParser
from dlcore.serve.parsers.glm45 import Glm45ToolParser
from dlcore.serve.parsers.hermes import HermesToolParser
from dlcore.serve.parsers.json_tools import JsonToolParser
from dlcore.serve.parsers.kimi_k2 import KimiK2ToolParser
from dlcore.serve.parsers.message import MessageParser
from dlcore.serve.parsers.qwen3_coder import Qwen3CoderToolParser
from dlcore.serve.parsers.think import CLOSE, OPEN, ThinkParser, opens_in_prompt

TOOL_PARSERS: dict[str, type[ToolParser]] = {
    "hermes": HermesToolParser,
    "qwen3_coder": Qwen3CoderToolParser,
    "qwen3_xml": Qwen3CoderToolParser,
    "deepseek_v3": DeepSeekV3ToolParser,
    "deepseek_v31": DeepSeekV31ToolParser,
    "deepseek_v32": DeepSeekV32ToolParser,
    "deepseek_v4": DeepSeekV32ToolParser,
    "kimi_k2": KimiK2ToolParser,
    "glm45": Glm45ToolParser,
    "glm47": Glm45ToolParser,
    "llama3_json": JsonToolParser,
    "json": JsonToolParser,
}

# name -> markers that end the reasoning without </think>
REASONING_PARSERS: dict[str, Sequence[str]] = {
    "qwen3": (),
    "deepseek_r1": (),
    "deepseek_v3": (),
    "glm45": (),
    "kimi_k2": KimiK2ToolParser.section_open,
}

# What a chat template says when it writes a call; the first that fits names the parser.
_TEMPLATE_SIGNS = (
    ("｜DSML｜", "deepseek_v32"),
    ("<|tool_call_argument_begin|>", "kimi_k2"),
    ("<arg_key>", "glm45"),
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
)
_MODEL_TYPES = {
    "qwen2": "hermes",
    "qwen3": "hermes",
    "qwen3_moe": "hermes",
    "qwen3_vl": "hermes",
    "qwen3_vl_moe": "hermes",
    "qwen3_next": "qwen3_coder",
    "qwen3_5": "qwen3_coder",
    "qwen3_5_moe": "qwen3_coder",
    "deepseek_v3": "deepseek_v3",
    "deepseek_v32": "deepseek_v32",
    "deepseek_v4": "deepseek_v4",
    "kimi_k2": "kimi_k2",
    "glm4_moe": "glm45",
    "glm_moe_dsa": "glm45",
    "llama": "llama3_json",
}


def choose_tool_parser(model_type: str, chat_template: str | None) -> str | None:
    """By what the template shows of the format, else by the kind of model."""
    template = chat_template or ""
    if "<｜tool▁sep｜>" in template:
        return "deepseek_v3" if "```json" in template else "deepseek_v31"
    for sign, name in _TEMPLATE_SIGNS:
        if sign in template:
            return name
    return _MODEL_TYPES.get(model_type)


def choose_reasoning_parser(model_type: str, chat_template: str | None) -> str | None:
    """A model reasons if its template knows the tags."""
    template = chat_template or ""
    if OPEN not in template and CLOSE not in template:
        return None
    return "kimi_k2" if model_type.startswith("kimi") else "qwen3"


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How a served model writes its answers: names from the two tables above, or None."""

    tool_parser: str | None = None
    reasoning_parser: str | None = None

    @property
    def tools_need_special_tokens(self) -> bool:
        """With tools, detokenise with skip_special_tokens=False."""
        name = self.tool_parser
        return name is not None and TOOL_PARSERS[name].needs_special_tokens

    def reasoning_span(self, prompt: str) -> ReasoningSpan | None:
        """The free text that may stand before a constrained answer to `prompt`."""
        if self.reasoning_parser is None or prompt.rstrip().endswith(CLOSE):
            return None
        return ReasoningSpan(start=OPEN, end=CLOSE, is_open=opens_in_prompt(prompt))

    def parser(
        self,
        prompt: str,
        tools: Mapping[str, Mapping[str, Any]] | None,
        *,
        constrained: bool = False,
        parallel_tool_calls: bool = True,
    ) -> Parser | None:
        """The parser of one answer, or None when all of its text is content.

        `prompt`: the rendered prompt. `tools`: function name -> schema of its parameters;
        None or empty when the model may not call any. `constrained`: the answer is made of
        calls alone, in plain JSON (tool_choice "required" or a named function).
        """
        think = self._think(prompt)
        calls = self._calls(tools, constrained=constrained)
        if think is None and calls is None:
            return None
        return MessageParser(think, calls, max_calls=None if parallel_tool_calls else 1)

    def _think(self, prompt: str) -> ThinkParser | None:
        if self.reasoning_parser is None:
            return None
        return ThinkParser(
            in_reasoning=opens_in_prompt(prompt),
            implicit_ends=REASONING_PARSERS[self.reasoning_parser],
        )

    def _calls(
        self, tools: Mapping[str, Mapping[str, Any]] | None, *, constrained: bool
    ) -> ToolParser | None:
        if not tools:
            return None
        context = ToolContext(tools)
        if constrained:
            return JsonToolParser(context)
        return TOOL_PARSERS[self.tool_parser](context) if self.tool_parser else None

"""How an answer's text is read: as content, reasoning and tool calls.

Every chat API sees the same events, streamed or not; a whole answer is the sum of its stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dlcore.outputs import CompletionOutput
from dlcore.sampling_params import StructuredOutputs
from dlcore.serve.constraints import forces_call, parameters_schema
from dlcore.serve.errors import bad_request
from dlcore.serve.parsers.base import Parser
from dlcore.serve.parsers.events import ContentDelta, Event, ReasoningDelta, ToolCallStart
from dlcore.serve.parsers.registry import AnswerFormat
from dlcore.serve.schemas.chat import ChatRequest


class Reading:
    """One choice being read. Feed it the choice's outputs in order."""

    __slots__ = ("_parser", "_show_reasoning", "num_calls", "reasoning")

    def __init__(self, parser: Parser | None, *, show_reasoning: bool) -> None:
        self.num_calls = 0
        self.reasoning: list[str] = []
        self._parser = parser
        self._show_reasoning = show_reasoning

    def read(self, out: CompletionOutput) -> list[Event]:
        if self._parser is None:
            return [ContentDelta(out.text)] if out.text else []
        events = self._parser.push(out.text) if out.text else []
        if out.finish_reason is not None:
            events = events + self._parser.finish()
        return [event for event in events if self._wanted(event)]

    def finish_reason(self, reason: str | None) -> str | None:
        """The reason to show: a stop after tool calls says so."""
        return "tool_calls" if reason == "stop" and self.num_calls else reason

    def _wanted(self, event: Event) -> bool:
        if isinstance(event, ReasoningDelta):
            self.reasoning.append(event.text)
            return self._show_reasoning
        self.num_calls += isinstance(event, ToolCallStart)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReader:
    """Reads the answers of one request; `reading` begins one choice."""

    format: AnswerFormat
    prompt: str
    tools: Mapping[str, Mapping[str, Any]]
    constrained: bool
    parallel_calls: bool
    show_reasoning: bool

    @property
    def skip_special_tokens(self) -> bool:
        return not (self.tools and self.format.tools_need_special_tokens)

    def after_reasoning(self, rule: StructuredOutputs | None) -> StructuredOutputs | None:
        """`rule` for what follows the reasoning, where the model reasons: that stays free."""
        return rule and replace(rule, reasoning=self.format.reasoning_span(self.prompt))

    def reading(self) -> Reading:
        return Reading(self._parser(), show_reasoning=self.show_reasoning)

    def _parser(self) -> Parser | None:
        return self.format.parser(
            self.prompt,
            self.tools,
            constrained=self.constrained,
            parallel_tool_calls=self.parallel_calls,
        )


def answer_reader(form: AnswerFormat, request: ChatRequest, prompt: str) -> AnswerReader:
    """Raises ApiError 400 for tools that this model's answers cannot be searched for."""
    tools = request.tools if request.tool_choice != "none" else None
    constrained = forces_call(request)
    if tools and not constrained and form.tool_parser is None:
        raise bad_request(
            "tools: this model has no known tool call format; start the server with "
            "--tool-call-parser, or send tool_choice 'required' or a named tool",
            "tools",
        )
    return AnswerReader(
        format=form,
        prompt=prompt,
        tools={tool.function.name: parameters_schema(tool) for tool in tools or []},
        constrained=constrained,
        parallel_calls=request.parallel_tool_calls is not False,
        show_reasoning=request.include_reasoning is not False,
    )

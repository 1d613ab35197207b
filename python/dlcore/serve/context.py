"""What every endpoint is given: the engine, the settings, and the server's shared parts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dlcore.chat_template import ChatTemplate, ChatTemplateError
from dlcore.config import ConfigError
from dlcore.engine_client import EngineClient
from dlcore.serve.body import UnknownFields
from dlcore.serve.config import ServeConfig
from dlcore.serve.drain import Drain
from dlcore.serve.errors import not_found
from dlcore.serve.limits import Limiter, Limits, OwnLimits
from dlcore.serve.metrics import Metrics
from dlcore.serve.parsers.registry import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    AnswerFormat,
    choose_reasoning_parser,
    choose_tool_parser,
)
from dlcore.serve.response_homes import ResponseHomes
from dlcore.serve.tracing import Tracing, make_tracing
from dlcore.serve.turns import Turns
from dlcore.tokenizer import Tokenizer


@dataclass(slots=True)
class ServerContext:
    engine: EngineClient
    config: ServeConfig
    metrics: Metrics
    answer_format: AnswerFormat
    limits: Limiter  # of a key, whichever way it comes
    chat_template: ChatTemplate | None = None  # replaces the model's
    tracing: Tracing | None = None
    homes: ResponseHomes | None = None  # where several processes serve one port
    drain: Drain = field(default_factory=Drain)
    turns: Turns = field(default_factory=Turns)
    unknown_fields: UnknownFields = field(default_factory=UnknownFields)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model_names(self) -> tuple[str, ...]:
        return self.config.served_model_name or (self.engine.model_name,)

    def resolve_model(self, asked: str | None) -> str:
        """The name to answer with. Raises ApiError 404 for a model that is not served."""
        names = self.model_names
        if not asked or asked in names:
            return asked or names[0]
        served = ", ".join(names)
        raise not_found(
            f"the model {asked!r} is not served here; served: {served}", "model", "model_not_found"
        )


def make_context(engine: EngineClient, config: ServeConfig) -> ServerContext:
    """Raises ConfigError for an unknown parser name or an unreadable template."""
    names = config.served_model_name or (engine.model_name,)
    form = _answer_format(config, engine.tokenizer)
    template = _template_file(config.chat_template, engine.tokenizer)
    traces = make_tracing(config.otlp_endpoint) if config.otlp_endpoint else None
    metrics = Metrics(names[0], engine.stats)
    limits = OwnLimits(Limits.of(config))
    return ServerContext(engine, config, metrics, form, limits, template, traces)


def _template_file(file: str | None, tokenizer: Tokenizer | None) -> ChatTemplate | None:
    if file is None:
        return None
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("chat_template", f"cannot read {file}: {exc}") from None
    try:
        return chat_template_of(text, tokenizer)
    except ChatTemplateError as exc:
        raise ConfigError("chat_template", f"{file}: {exc}") from None


def chat_template_of(text: str, tokenizer: Tokenizer | None) -> ChatTemplate:
    """`text` as a template that knows the model's special tokens. Raises ChatTemplateError."""
    own = tokenizer.chat_template if tokenizer is not None else None
    return ChatTemplate.from_sources({"default": text}, own.special_tokens if own else {})


def _answer_format(config: ServeConfig, tokenizer: Tokenizer | None) -> AnswerFormat:
    template = tokenizer.chat_template if tokenizer is not None else None
    text = "".join(template.sources.values()) if template is not None else ""
    tools = config.tool_call_parser or choose_tool_parser("", text)
    reasoning = config.reasoning_parser or choose_reasoning_parser("", text)
    return AnswerFormat(
        tool_parser=_known("tool_call_parser", tools, TOOL_PARSERS),
        reasoning_parser=_known("reasoning_parser", reasoning, REASONING_PARSERS),
    )


def _known(option: str, name: str | None, table: Mapping[str, object]) -> str | None:
    if name in (None, "none"):
        return None
    if name not in table:
        raise ConfigError(option, f"must be none or one of {', '.join(table)}; got {name!r}")
    return name

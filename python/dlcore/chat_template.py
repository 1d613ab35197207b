"""A model folder's chat template: messages in, prompt text out.

Rendered the way Hugging Face's tokenizers render it (same filters, globals and
whitespace rules), in jinja's immutable sandbox: a template is data, not code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]


class ChatTemplateError(ValueError):
    """The template refused the messages, or is not valid jinja."""


class _GenerationTag(Extension):
    """`{% generation %}` marks assistant text for training; rendering ignores it."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own tojson escapes HTML characters, which would change the prompt.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(fmt: str) -> str:
    return datetime.now().strftime(fmt)


def _make_environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    env.filters["tojson"] = _to_json
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    return env


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The templates of one folder by name; `default`, and `tool_use` where tools are given."""

    templates: dict[str, jinja2.Template]
    special_tokens: dict[str, str]
    sources: Mapping[str, str]

    @staticmethod
    def from_folder(path: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
        """None when the folder has no template. Raises ChatTemplateError for a broken one."""
        sources = _read_sources(path, tokenizer_config)
        if not sources:
            return None
        return ChatTemplate.from_sources(sources, _special_tokens(tokenizer_config))

    @staticmethod
    def from_sources(sources: Mapping[str, str], special_tokens: dict[str, str]) -> ChatTemplate:
        env = _make_environment()
        try:
            compiled = {name: env.from_string(text) for name, text in sources.items()}
        except jinja2.TemplateSyntaxError as e:
            raise ChatTemplateError(f"chat template line {e.lineno}: {e.message}") from e
        return ChatTemplate(compiled, special_tokens, sources)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt. `kwargs` reach the template (e.g. enable_thinking=False)."""
        if continue_final_message and add_generation_prompt:
            raise ChatTemplateError(
                "continue_final_message and add_generation_prompt exclude each other"
            )
        variables = {**self.special_tokens, **kwargs}
        variables.update(
            messages=messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
        )
        try:
            text = self._choose(tools is not None).render(variables)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as e:
            raise ChatTemplateError(f"chat template: {e}") from e
        return _cut_after_final_message(text, messages) if continue_final_message else text

    def _choose(self, with_tools: bool) -> jinja2.Template:
        if with_tools and "tool_use" in self.templates:
            return self.templates["tool_use"]
        if "default" in self.templates:
            return self.templates["default"]
        names = ", ".join(sorted(self.templates))
        raise ChatTemplateError(f"the model has no default chat template, only: {names}")


def _read_sources(path: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    configured = tokenizer_config.get("chat_template")
    sources: dict[str, str] = {}
    if isinstance(configured, str):
        sources["default"] = configured
    elif isinstance(configured, list):
        sources.update({entry["name"]: entry["template"] for entry in configured})
    legacy = path / "chat_template.json"
    if legacy.is_file():
        sources["default"] = json.loads(legacy.read_text(encoding="utf-8"))["chat_template"]
    for extra in sorted((path / "additional_chat_templates").glob("*.jinja")):
        sources[extra.stem] = extra.read_text(encoding="utf-8")
    main = path / "chat_template.jinja"
    if main.is_file():
        sources["default"] = main.read_text(encoding="utf-8")
    return sources


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, ... as text, under the names templates use."""
    found: dict[str, str] = {}
    for key, value in tokenizer_config.items():
        if not key.endswith("_token"):
            continue
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[key] = text
    return found


def _cut_after_final_message(text: str, messages: Sequence[Message]) -> str:
    """Drops what the template wrote after the last message, so the model continues it."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, list):
        parts = [p["text"] for p in content if isinstance(p, Mapping) and "text" in p]
        content = parts[-1] if parts else None
    if not isinstance(content, str) or not content.strip():
        raise ChatTemplateError("continue_final_message needs text in the last message")
    start = text.rfind(content.strip())
    if start < 0:
        raise ChatTemplateError(
            "continue_final_message: the template does not write the last message verbatim"
        )
    verbatim = content.lstrip()  # with the trailing space the client typed, if it survived
    kept = verbatim if text.startswith(verbatim, start) else content.strip()
    return text[: start + len(kept)]

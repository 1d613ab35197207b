"""`dlcore serve`: flags into EngineConfig and ServeConfig, then the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

import click

import dlcore
from dlcore.commands.flags import (
    SectionedCommand,
    config_file_option,
    engine_config,
    engine_flags,
    model_argument,
)
from dlcore.config import Environment
from dlcore.engine_client import EngineClient
from dlcore.frontends.supervisor import run_frontends
from dlcore.serve.config import ServeConfig
from dlcore.serve.http import run_server

F = TypeVar("F", bound=Callable[..., Any])


def serve_flags(function: F) -> F:
    """One flag per field of ServeConfig; its help text is the field's."""
    kinds = get_type_hints(ServeConfig)
    for config_field in reversed(fields(ServeConfig)):
        function = _flag(config_field.name, kinds[config_field.name], config_field)(function)
    return function


def _flag(name: str, kind: Any, config_field: Any) -> Callable[[F], F]:
    flag = name.replace("_", "-")
    text, default = config_field.metadata["help"], config_field.default
    if kind is bool:
        return click.option(f"--{flag}/--no-{flag}", name, default=default, help=text)
    if kind == tuple[str, ...]:
        return click.option(f"--{flag}", name, multiple=True, help=text)
    scalar = kind if kind in (int, float) else str
    shown = default is not None
    return click.option(
        f"--{flag}", name, type=scalar, default=default, show_default=shown, help=text
    )


@click.command(cls=SectionedCommand)
@model_argument
@serve_flags
@engine_flags
@config_file_option
def serve(model: str | None, **flags: Any) -> int:
    """Serve MODEL over HTTP with the OpenAI API.

    MODEL is a Hugging Face folder or repository name; without it, the bundled demo model.
    The server listens on this machine only unless you pass --host.

    \b
    Examples:
      dlcore serve
      dlcore serve /models/Qwen3-8B --served-model-name qwen3-8b --max-model-len 32768
      dlcore serve /models/Qwen3-8B --host 0.0.0.0 --api-key "$SECRET"
    \b
    Then, from another terminal:
      curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "What is 3 + 4?"}]}'
    """
    names: tuple[str, ...] = flags["served_model_name"]
    config = engine_config(model, flags, served_model_name=names[0] if names else None)
    settings = {f.name: flags[f.name] for f in fields(ServeConfig)}
    environment_key = Environment.read().api_key
    if not settings["api_key"] and environment_key:
        settings["api_key"] = (environment_key,)

    serve_config = ServeConfig(**settings)
    if serve_config.frontends > 1:
        return run_frontends(config, serve_config)

    async def make_engine() -> EngineClient:
        return dlcore.AsyncLLM.from_config(config)

    return run_server(serve_config, make_engine)

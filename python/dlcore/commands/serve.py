"""`dlcore serve`: flags into EngineConfig and ServeConfig, then the server."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import click

import dlcore
from dlcore.commands.flags import (
    SectionedCommand,
    config_file_option,
    config_flags,
    engine_config,
    engine_flags,
    model_argument,
)
from dlcore.config import Environment
from dlcore.engine_client import EngineClient
from dlcore.frontends.supervisor import run_frontends
from dlcore.serve.config import ServeConfig
from dlcore.serve.http import run_server
from dlcore.serve.kv_key import kv_transfer_config


@click.command(cls=SectionedCommand)
@model_argument
@config_flags(ServeConfig)
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
    if serve_config.role != "hybrid":
        kv = kv_transfer_config(serve_config)
        config = replace(config, kv_transfer=kv)
        if not (serve_config.api_key or serve_config.api_key_file):
            serve_config = replace(serve_config, api_key=(kv.key.decode(),))
    if serve_config.frontends > 1:
        return run_frontends(config, serve_config)

    async def make_engine() -> EngineClient:
        return dlcore.AsyncLLM.from_config(config)

    return run_server(serve_config, make_engine)

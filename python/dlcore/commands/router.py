"""`dlcore router`: flags into RouterConfig, then the router's server."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from dlcore.commands.flags import SectionedCommand, config_file_option, config_flags
from dlcore.config import Environment
from dlcore.router.backend import Role
from dlcore.router.config import RouterConfig, parse_backend
from dlcore.router.server import run_router


@click.command(cls=SectionedCommand)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="URL[=ROLE]",
    help=f"A node; repeat for several. ROLE: {', '.join(role.value for role in Role)}.",
)
@config_flags(RouterConfig)
@config_file_option
def router(backends: tuple[str, ...], **flags: Any) -> int:
    """One address in front of several nodes.

    Nodes are `dlcore serve` processes, or any server with the OpenAI API. A streaming client
    of dlcore nodes sees a pause, not an error, when the node that answers it dies.

    \b
    Examples:
      dlcore router --backend http://10.0.0.2:8000 --backend http://10.0.0.3:8000
      dlcore router --backend http://127.0.0.1:8001 --policy least_load --port 9000
      dlcore router --discovery ctrl --ctrl-url http://10.0.0.1:4479 --scope prod
    """
    settings = {f.name: flags[f.name] for f in fields(RouterConfig) if f.name in flags}
    environment_key = Environment.read().api_key
    if not settings["api_key"] and environment_key:
        settings["api_key"] = (environment_key,)
    return run_router(RouterConfig(backends=tuple(map(parse_backend, backends)), **settings))

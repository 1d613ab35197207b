"""`dlcore up`: a router and several nodes on this machine, for development."""

from __future__ import annotations

import signal
import tempfile
import threading
from pathlib import Path

import click

from dlcore import _core
from dlcore.config import ConfigError, Environment
from dlcore.control.local_system import LocalPlan, LocalSystem, StartError

CHECK_INTERVAL_S = 0.5
DEFAULT_REPLICAS = 2


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[MODEL] [SERVE FLAGS]...")
@click.option(
    "--replicas",
    type=click.IntRange(0),
    help=f"How many nodes that serve whole requests.  "
    f"[default: {DEFAULT_REPLICAS}, or 0 beside prefill and decode nodes]",
)
@click.option(
    "--prefill", type=click.IntRange(0), default=0, help="How many nodes that compute prompts."
)
@click.option(
    "--decode",
    type=click.IntRange(0),
    default=0,
    help="How many nodes that fetch a prompt's KV from those and answer.",
)
@click.option("--port", type=int, default=8080, show_default=True, help="The router's port.")
@click.option("--policy", help="The router's policy (see `dlcore router --help`).")
@click.option("--ctrl", is_flag=True, help="Nodes find the router through Redis and dlslime-ctrl.")
@click.option("--log-dir", type=click.Path(path_type=Path), help="Where the processes log.")
@click.option(
    "--start-timeout",
    type=float,
    default=300.0,
    show_default=True,
    help="Seconds the nodes may take to come up.",
)
def up(
    args: tuple[str, ...],
    replicas: int | None,
    prefill: int,
    decode: int,
    port: int,
    policy: str | None,
    ctrl: bool,
    log_dir: Path | None,
    start_timeout: float,
) -> int:
    """Start a router and its nodes on this machine; Ctrl-C stops all of them.

    A node that dies is started again. Flags that are not listed here are those of
    `dlcore serve`, and go to every node. Without --device the nodes take turns on the GPUs;
    where several share one, give --num-kv-blocks.

    \b
    Examples:
      dlcore up
      dlcore up --replicas 3 --ctrl
      dlcore up --prefill 1 --decode 2
      dlcore up /models/Qwen3-8B --replicas 2 --max-model-len 8192
    """  # fmt: skip
    roles = _roles(replicas, prefill, decode)
    has_model = bool(args) and not args[0].startswith("-")
    plan = LocalPlan(
        roles=roles,
        log_dir=log_dir or Path(tempfile.mkdtemp(prefix="dlcore-up-")),
        model=args[0] if has_model else None,
        router_port=port,
        node_args=args[1:] if has_model else args,
        router_args=("--policy", policy) if policy else (),
        devices=_devices(args),
        ctrl=ctrl,
        api_key=Environment.read().api_key,
    )
    return _run(LocalSystem(plan), start_timeout)


def _roles(replicas: int | None, prefill: int, decode: int) -> tuple[tuple[str, int], ...]:
    """Raises ConfigError for numbers of nodes that cannot answer, or not by role."""
    if bool(prefill) != bool(decode):
        lacking, given = ("decode", "prefill") if prefill else ("prefill", "decode")
        raise ConfigError(lacking, f"must be at least 1 with --{given}")
    if replicas is None:
        replicas = 0 if prefill else DEFAULT_REPLICAS
    if replicas + prefill == 0:
        raise ConfigError("replicas", "must be at least 1 without --prefill and --decode")
    return ("hybrid", replicas), ("prefill", prefill), ("decode", decode)


def _devices(args: tuple[str, ...]) -> tuple[str, ...]:
    """This machine's GPUs, unless the nodes' flags say where to run."""
    if any(arg.startswith("--device") for arg in args):
        return ()
    return tuple(f"cuda:{i}" for i in range(_core.num_gpus()))


def _run(system: LocalSystem, start_timeout: float) -> int:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _interrupt(ended))
    try:
        click.echo(f"starting; the logs are in {system.plan.log_dir}")
        system.start(start_timeout)
        for node in system.nodes:
            click.echo(f"{node.name}: {system.url_of(node)}")
        click.echo(f"router: {system.router_url}/v1 is ready; Ctrl-C stops everything")
        while not ended.wait(CHECK_INTERVAL_S):
            for child in system.restart_dead():
                click.echo(f"{child.name} died; started again", err=True)
    except StartError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        pass
    finally:
        system.stop()
    click.echo("stopped")
    return 0


def _interrupt(ended: threading.Event) -> None:
    """The first signal ends a start as well as the watch; `stop` runs undisturbed."""
    if not ended.is_set():
        ended.set()
        raise KeyboardInterrupt

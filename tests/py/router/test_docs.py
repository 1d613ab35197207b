"""docs/router.md says what the router does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from dlcore import cli
from dlcore.router.app import PLAIN_PATHS, RESUMABLE_PATHS
from dlcore.router.config import DISCOVERIES
from dlcore.router.metrics import RouterMetrics
from dlcore.router.policies import POLICIES
from dlcore.router.pool import BackendPool

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "router.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("dlcore ")
]


def options_of(name: str) -> set[str]:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    return {spelling for parameter in command.params for spelling in parameter.opts}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_shown_is_understood(words: list[str]) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), words[1])
    assert command is not None
    command.make_context(words[1], words[2:])  # raises for a flag there is not


def test_every_flag_named_is_one() -> None:
    known = options_of("router") | options_of("serve") | options_of("up")
    known |= {"--redis-url", "--ctrl"}  # dlslime-ctrl's, tools/chaos.py's
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= known


def test_policies_discoveries_and_paths_are_all_described() -> None:
    for name in (*POLICIES, *RESUMABLE_PATHS, *PLAIN_PATHS):
        assert f"`{name}`" in PAGE
    for name in DISCOVERIES:
        assert f"`--discovery {name}`" in PAGE


def test_the_metrics_are_those_exported() -> None:
    pool = BackendPool(failures_until_down=1, forget=lambda backend: None)
    metrics = RouterMetrics(pool).render().decode()
    exported = {
        line.split()[2]
        for line in metrics.splitlines()
        if line.startswith("# TYPE") and "_created" not in line
    }
    described = set(re.findall(r"`(dlcore_router:\w+)", PAGE))
    assert described == exported

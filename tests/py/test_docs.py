"""What the documentation says exists: links, files, commands, flags, metrics."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest
from serve.live_server import live_server

from dlcore import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "tests").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|[\s`/;&|])dlcore ([a-z]+)((?:[ ]+[^\n`|;&#]*)?)")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in BLOCK.findall(page.read_text()) if language in languages]


def anchors(page: Path) -> set[str]:
    """The names GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", t.lower()).strip().replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for target in LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), f"{named(page)}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{named(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_path_of_the_project_that_is_named_exists(page: Path) -> None:
    paths = re.findall(r"`((?:tools|tests|docs|cpp|python)/[\w./-]+)`", page.read_text())
    missing = [p for p in paths if not (ROOT / p).exists()]
    assert not missing, named(page)


@cache
def flags_of(command: str) -> frozenset[str]:
    loaded = cli.cli.get_command(click.Context(cli.cli), command)
    assert loaded is not None, f"dlcore has no command {command}"
    options = [p for p in loaded.params if isinstance(p, click.Option)]
    return frozenset(f for o in options for f in (*o.opts, *o.secondary_opts)) | {"--help", "-h"}


def mentions(page: Path) -> list[tuple[str, str]]:
    """(command, its arguments) of every `dlcore X ...` in code, not in prose."""
    text = page.read_text()
    code = [body.replace("\\\n", " ") for language, body in BLOCK.findall(text)
            if language != "python"]  # fmt: skip
    code += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    return [found for piece in code for found in COMMAND.findall(piece)]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_flag_that_is_named_exists(page: Path) -> None:
    for command, arguments in mentions(page):
        known = flags_of(command)
        for flag in re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", arguments):
            assert flag in known, f"{named(page)}: dlcore {command} {flag}"


def test_every_flag_the_page_on_serving_names_is_one_of_serve() -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    for flag in re.findall(r"`(--[a-z][a-z-]*)", text):
        assert flag in flags_of("serve"), flag


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_of_shell_parses_and_runs_programs_that_are_there(page: Path) -> None:
    for body in blocks(page, "bash", "sh"):
        done = subprocess.run(
            ["bash", "-n"], input=body, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{named(page)}: {done.stderr}"
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].startswith("tools/"):
                assert (ROOT / words[0]).stat().st_mode & 0o111, f"{named(page)}: {words[0]}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_of_json_and_python_parses(page: Path) -> None:
    for body in blocks(page, "json"):
        json.loads(body)
    for body in blocks(page, "python"):
        ast.parse(body)


def test_the_readmes_python_runs() -> None:
    """Both snippets, the client's against a server of our own."""
    with live_server() as server:
        snippets = blocks(ROOT / "README.md", "python")
        assert len(snippets) == 2
        for snippet in snippets:
            mine = snippet.replace("http://127.0.0.1:8000", server.base)
            mine = mine.replace('model="dlcore-demo"', 'model="fake"')
            done = subprocess.run(
                [sys.executable, "-c", mine],
                capture_output=True,
                text=True,
                timeout=110,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-1000:]
            assert done.stdout.strip()

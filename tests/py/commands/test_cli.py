from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dlcore import cli, diagnosis
from dlcore.commands import flags as shared_flags
from dlcore.config import ConfigError
from dlcore.engine_client import EngineDeadError
from dlcore.sampling_params import ParameterError
from dlcore.serve.config import ServeConfig

TIMEOUT_S = 60
serve_command = importlib.import_module("dlcore.commands.serve")


def dlcore(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dlcore", *args]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    result = CliRunner().invoke(cli.cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"dlcore {name}" in result.output
    described = [line for line in result.output.splitlines() if line.startswith("  -")]
    assert len(described) >= 2  # arguments are explained in the text, options in the list
    assert "\n  [MODEL]" not in result.output


def test_help_lists_every_command_and_imports_none() -> None:
    code = "import sys; from dlcore.cli import run; run(['--help']); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    assert done.stdout.endswith("False\n")
    for name in cli.COMMANDS:
        assert f"  {name} " in done.stdout


def test_an_unknown_command_is_wrong_input() -> None:
    done = dlcore("sevre")
    assert done.returncode == cli.EXIT_BAD_INPUT
    assert "No such command" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("model", "no such folder"), 2, "Error: MODEL: no such folder"),
        (ConfigError("max_model_len", "too big"), 2, "Error: --max-model-len: too big"),
        (ParameterError("top_p", "must be in (0, 1]"), 2, "Error: top_p: must be in (0, 1]"),
        (EngineDeadError("stalled"), 1, "Error: stalled"),
        (MemoryError(), 1, "Error: not enough memory"),
        (RuntimeError("can't allocate memory: 9 GB"), 1, "Error: not enough memory"),
        (OSError(28, "No space left"), 1, "No space left"),
        (KeyError("x"), 1, "--verbose"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_every_failure_is_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli, "main", fail)
    assert cli.run(["serve"]) == code
    shown = capsys.readouterr().err
    assert line in shown
    assert shown.count("\n") <= 1
    assert "Traceback" not in shown
    if isinstance(error, Exception):
        assert cli.run(["--verbose", "serve"]) == code
        assert "Traceback" in capsys.readouterr().err


@pytest.fixture
def echo_flags() -> click.Command:
    """A command that prints its flags."""

    @click.command()
    @shared_flags.model_argument
    @shared_flags.engine_flags
    @shared_flags.config_file_option
    def echo(model: str | None, **flags: object) -> None:
        given = {k: v for k, v in flags.items() if v is not None}
        click.echo(json.dumps({"model": model, **given}))

    return echo


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def write_file(text: str) -> str:
        path = tmp_path / "flags.yaml"
        path.write_text(text)
        return str(path)

    return write_file


def test_flags_may_come_from_a_file_and_typed_ones_win(
    echo_flags: click.Command, write: Callable[[str], str]
) -> None:
    file = write("model: /models/a\nmax-model-len: 128\nblock_size: 8\ndtype: float32\n")
    result = CliRunner().invoke(echo_flags, ["--config", file, "--block-size", "32"])
    assert json.loads(result.output) == {
        "model": "/models/a",
        "max_model_len": 128,
        "block_size": 32,
        "dtype": "float32",
    }


def test_every_flag_of_serve_may_stand_in_a_file(
    write: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr(serve_command, "engine_config", lambda m, flags, **_: seen.update(flags))
    monkeypatch.setattr(serve_command, "run_server", lambda config, _: seen.update(asdict(config)))
    command = serve_command.serve
    texts = {"log_level": "debug", "ssl_certfile": __file__, "ssl_keyfile": __file__,
             "ssl_ca_certs": __file__, "role": "hybrid"}  # fmt: skip
    wanted: dict[str, object] = {}
    for option in command.params:
        if not isinstance(option, click.Option) or not option.expose_value:
            continue
        kind = option.type
        if option.name in ("frontends", "grpc_port", "ssl_keyfile_password"):
            continue  # more processes, and two that exclude each other
        if isinstance(kind, click.Choice):
            value: object = kind.choices[-1]
        elif option.is_flag:
            value = not option.default
        elif kind is click.STRING:
            value = texts.get(str(option.name), "x")
        else:
            value = 3 if kind is click.INT else 0.5
        wanted[str(option.name)] = value
    assert len(wanted) > 45
    file = write("".join(f"{n.replace('_', '-')}: {json.dumps(v)}\n" for n, v in wanted.items()))
    CliRunner().invoke(command, ["--config", file], catch_exceptions=False)
    for name, value in wanted.items():
        assert seen[name] == value or seen[name] == (value,), name


@pytest.mark.parametrize("port", ["0", "50051"])
def test_the_grpc_port_is_a_number(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServeConfig] = []
    monkeypatch.setattr(serve_command, "run_server", lambda config, _: seen.append(config))
    CliRunner().invoke(serve_command.serve, ["--grpc-port", port], catch_exceptions=False)
    assert seen[0].grpc_port == int(port)


@pytest.mark.parametrize("text", ["max-model-length: 3\n", "- a\n", "a: [\n", "dtype: int9\n"])
def test_a_wrong_file_of_flags_is_wrong_input(
    text: str, echo_flags: click.Command, write: Callable[[str], str]
) -> None:
    result = CliRunner().invoke(echo_flags, ["--config", write(text)])
    assert result.exit_code == cli.EXIT_BAD_INPUT
    assert "Error" in result.output


def test_doctor_says_what_runs_and_its_exit_code_agrees() -> None:
    result = CliRunner().invoke(cli.cli, ["doctor", "--json"], standalone_mode=False)
    report = json.loads(result.output)
    names = {f["name"] for f in report["findings"]}
    assert {"Python", "C++ core", "torch", "CPU", "CUDA driver", "GPU", "nvcc", "RDMA"} <= names
    assert (result.return_value == 0) == report["ok"]
    for finding in report["findings"]:
        assert finding["detail"]
        assert finding["status"] in {"ok", "missing", "broken"}


def test_doctor_is_not_well_when_the_core_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlcore._core", None)
    findings = diagnosis.examine(0)
    core = next(f for f in findings if f.name == "C++ core")
    assert core.status is diagnosis.Status.BROKEN
    assert "pip install" in core.fix
    assert not diagnosis.can_serve(findings)


def test_doctor_sees_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        finding = diagnosis.check_port(taken.getsockname()[1])
    assert finding.status is diagnosis.Status.MISSING
    assert "in use" in finding.detail

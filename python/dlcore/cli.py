"""The `dlcore` command. Each subcommand is one file of dlcore/commands/, imported when used."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from dlcore.config import ConfigError
from dlcore.engine_client import EngineDeadError
from dlcore.sampling_params import ParameterError
from dlcore.version import VERSION

# name -> the line `dlcore --help` shows; so help imports none of them.
COMMANDS = {
    "serve": "Serve a model over HTTP, OpenAI-compatible.",
    "router": "One address in front of several servers; survives their deaths.",
    "up": "Start a router and several servers on this machine.",
    "chat": "Talk to a model in the terminal.",
    "generate": "Answer a file of prompts, offline.",
    "bench": "Measure latency and throughput.",
    "doctor": "Say what this machine can run, and why not.",
    "top": "Watch a running server.",
}

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(import_module(f"dlcore.commands.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, "-V", "--version", prog_name="dlcore")
@click.option("-v", "--verbose", is_flag=True, help="Show the full traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, verbose: bool) -> None:
    """dlcore runs large language models, on a GPU or a CPU.

    Without a MODEL every command uses the small model that comes with dlcore, so you can try
    all of them at once, with no download and no GPU. A MODEL is a Hugging Face folder on disk
    or a repository name.

    \b
    Try:
      dlcore doctor                   what can this machine run?
      dlcore chat                     talk to the bundled model
      dlcore serve                    the same behind http://127.0.0.1:8000/v1
      dlcore serve /models/Qwen3-8B   your own model
    """
    ctx.obj = verbose


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0 fine, 1 failed, 2 wrong input."""
    sys.exit(run(list(sys.argv[1:] if args is None else args)))


def run(args: list[str]) -> int:
    verbose = bool(args) and args[0] in ("-v", "--verbose")
    try:
        result = cli.main(args, prog_name="dlcore", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILED  # `dlcore ... | head`
    except Exception as error:
        if verbose:
            traceback.print_exc()
        click.echo(f"Error: {explain(error)}", err=True)
        return EXIT_BAD_INPUT if isinstance(error, ValueError) else EXIT_FAILED
    return result if isinstance(result, int) else 0


def explain(error: Exception) -> str:
    """One line a user can act on."""
    text = " ".join(str(error).split())
    if isinstance(error, ConfigError):
        flag = "MODEL" if error.field == "model" else "--" + error.field.replace("_", "-")
        return f"{flag}: {text.removeprefix(error.field + ': ')}"
    if isinstance(error, ParameterError | EngineDeadError | ValueError):
        return text
    if is_out_of_memory(error):
        return (
            f"not enough memory ({text[:200]}); lower --gpu-memory-utilization, --num-kv-blocks, "
            "--max-num-seqs or --max-model-len, or use a smaller model"
        )
    if isinstance(error, OSError):
        return text
    return f"{type(error).__name__}: {text} (run `dlcore --verbose ...` for the traceback)"


def is_out_of_memory(error: Exception) -> bool:
    """torch's errors are told by name and text: the CLI does not import torch for this."""
    names = {"OutOfMemoryError", "AcceleratorError"}
    return (
        isinstance(error, MemoryError)
        or (type(error).__name__ in names and "memory" in str(error))
        or "can't allocate memory" in str(error)
    )


if __name__ == "__main__":
    main()

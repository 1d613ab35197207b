"""Flags that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import click
import yaml

from dlcore.bundled_model import make_config
from dlcore.config import (
    ATTENTION_BACKENDS,
    DTYPE_NAMES,
    KV_CACHE_DTYPES,
    LOAD_FORMATS,
    EngineConfig,
)
from dlcore.sampling_params import SamplingParams

F = TypeVar("F", bound=Callable[..., Any])

# Every flag is a field of EngineConfig; what is not given keeps the field's default.
ENGINE_FLAGS: Mapping[str, tuple[Any, str]] = {
    "max_model_len": (int, "Longest prompt + answer, in tokens. Default: what the model allows."),
    "dtype": (click.Choice(list(DTYPE_NAMES)), "Number format. Default: chosen for the device."),
    "device": (str, "Where to run: cpu, cuda, or cuda:1, the second GPU. Default: a GPU, if any."),
    "device_index": (int, "Which GPU, counted from 0."),
    "num_threads": (int, "CPU threads of a step. Default: by the model's size."),
    "load_format": (
        click.Choice(LOAD_FORMATS),
        "For benchmarks: dummy = random weights, dummy_uniform = the same drawn as vLLM's are, "
        "null = no model at all.",
    ),
    "tokenizer": (str, "Folder of another tokenizer than the model's."),
    "gpu_memory_utilization": (float, "Share of the GPU's memory to use. Default: 0.9."),
    "max_num_seqs": (int, "Most sequences running at once."),
    "max_num_batched_tokens": (int, "Most tokens in one step; longer prompts go in chunks."),
    "max_prefill_tokens_beside_decodes": (
        int,
        "Most prompt tokens in a step that also decodes: smaller gaps between tokens; 0 = any. "
        "Default: as --mixed-step-tokens leaves room.",
    ),
    "mixed_step_tokens": (
        int,
        "A step that also decodes is filled with prompts to a multiple of these tokens, some 3 a "
        "decode; 0 = any. Default on a GPU: 768 to 2048, by the model's size.",
    ),
    "block_size": (int, "Tokens per KV cache block. Default: 16."),
    "num_kv_blocks": (int, "KV cache blocks. Default: what fits the memory."),
    "enable_prefix_caching": (bool, "Reuse the KV of prompts that start alike. Default: on."),
    "enable_chunked_prefill": (bool, "Mix long prompts with running answers. Default: on."),
    "max_waiting_requests": (int, "Refuse requests beyond this queue (0 = never)."),
    "enforce_eager": (bool, "Run without CUDA graphs: slower, for finding faults."),
    "attention_backend": (click.Choice(ATTENTION_BACKENDS), "Attention kernels."),
    "kv_cache_dtype": (
        click.Choice(KV_CACHE_DTYPES),
        "fp8 = half the memory per token; answers differ slightly.",
    ),
    "watchdog_timeout_s": (float, "A step that takes longer fails the engine (0 = off)."),
}


class Section(click.Option):
    """An option that `--help` lists under its own heading."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(click.Command):
    """Lists plain options first, then each section's."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                name = parameter.section if isinstance(parameter, Section) else "Options"
                sections.setdefault(name, []).append(record)
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def config_flags(kind: type[Any]) -> Callable[[F], F]:
    """One flag per field of the dataclass that has a `help`; underscores become dashes."""
    kinds = get_type_hints(kind)

    def decorate(function: F) -> F:
        for config_field in reversed(fields(kind)):
            if "help" in config_field.metadata:
                function = _config_flag(kinds[config_field.name], config_field)(function)
        return function

    return decorate


def _config_flag(kind: Any, config_field: Any) -> Callable[[F], F]:
    name = config_field.name
    flag = name.replace("_", "-")
    text, default = config_field.metadata["help"], config_field.default
    if kind is bool:
        return click.option(f"--{flag}/--no-{flag}", name, default=default, help=text)
    if kind == tuple[str, ...]:
        return click.option(f"--{flag}", name, multiple=True, help=text)
    scalar = next((t for t in (int, float) if t is kind or t in get_args(kind)), str)
    shown = default is not None
    return click.option(
        f"--{flag}", name, type=scalar, default=default, show_default=shown, help=text
    )


def model_argument(function: F) -> F:
    return click.argument("model", required=False)(function)


def engine_flags(function: F) -> F:
    """Adds the engine's flags; read them with `engine_config`."""
    for name, (kind, text) in reversed(list(ENGINE_FLAGS.items())):
        flag = name.replace("_", "-")
        spelling = f"--{flag}" if kind is not bool else f"--{flag}/--no-{flag}"
        function = click.option(
            spelling, name, type=kind, default=None, help=text, cls=Section, section="Engine"
        )(function)
    return function


def engine_config(
    model: str | None, flags: Mapping[str, Any], served_model_name: str | None = None
) -> EngineConfig:
    """Raises ConfigError. Takes its own flags out of `flags`, leaves the others."""
    options = {name: flags[name] for name in ENGINE_FLAGS if flags.get(name) is not None}
    if served_model_name is not None:
        options["served_model_name"] = served_model_name
    return make_config(model, options)


def sampling_flags(max_tokens: int) -> Callable[[F], F]:
    """How to sample; read them with `sampling_params`. What is not given: the model's advice."""
    options = [
        click.option("--max-tokens", type=int, default=max_tokens, show_default=True,
                     help="Longest answer, in tokens."),
        click.option("--temperature", type=float, help="0 = always the most likely token."),
        click.option("--top-p", type=float, help="Sample from this share of the probability."),
        click.option("--top-k", type=int, help="Sample from the k most likely tokens (0 = all)."),
        click.option("--min-p", type=float, help="Drop tokens below this share of the best one."),
        click.option("--seed", type=int, help="The same seed gives the same answer."),
        click.option("--stop", multiple=True, help="Text that ends an answer; repeat for several."),
    ]  # fmt: skip

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def sampling_params(defaults: SamplingParams, flags: Mapping[str, Any]) -> SamplingParams:
    """Raises ParameterError naming the flag."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop")
    given = {n: flags[n] for n in names if flags.get(n) is not None}
    return replace(defaults, **given)


def config_file_option(function: F) -> F:
    """`--config FILE`: flags from YAML; what is typed on the command line wins."""
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config_file,
        help="YAML file of flags, e.g. `max-model-len: 4096`. Flags typed here win.",
    )(function)


def _read_config_file(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise click.BadParameter(f"{path} must hold `flag: value` lines")
    found = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = {parameter.name: parameter for parameter in ctx.command.params}
    unknown = sorted(found.keys() - known.keys())
    if unknown:
        raise click.BadParameter(f"{path}: unknown flag {', '.join(unknown)}")
    for name, value in found.items():
        if known[name].multiple and not isinstance(value, list):
            found[name] = [value]  # `api-key: one`
    ctx.default_map = {**(ctx.default_map or {}), **found}

"""`dlcore generate`: a file of prompts in, a JSONL file of answers out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress

import dlcore
from dlcore.chat_template import ChatTemplateError
from dlcore.commands.flags import (
    SectionedCommand,
    config_file_option,
    engine_config,
    engine_flags,
    sampling_flags,
    sampling_params,
)
from dlcore.outputs import RequestOutput
from dlcore.prompt_file import PromptLine, read_prompts
from dlcore.sampling_params import ParameterError

if TYPE_CHECKING:
    from dlcore.llm import LLM

WINDOW = 1024  # lines in the engine at once; answers are written window by window

Encoded = tuple[PromptLine, list[int] | str]  # the tokens, or why there are none


@click.command(cls=SectionedCommand)
@click.argument("prompts", type=click.File("r", encoding="utf-8"))
@click.option("--model", help="Model folder or repository name. Default: the bundled model.")
@click.option("-o", "--output", type=click.File("w", encoding="utf-8"), default="-",
              help="JSONL file to write. Default: standard output.")  # fmt: skip
@click.option("--jsonl/--text", default=None, help="The input's format. Default: by its name.")
@click.option("--raw", is_flag=True, help="Continue text as it is, without the chat template.")
@sampling_flags(max_tokens=256)
@engine_flags
@config_file_option
def generate(
    prompts: IO[str],
    model: str | None,
    output: IO[str],
    jsonl: bool | None,
    raw: bool,
    **flags: Any,
) -> int:
    """Answer every prompt of the file PROMPTS (- is standard input).

    A text file holds one prompt a line, asked as a chat message where the model has a chat
    template. A .jsonl file holds one object a line with "prompt" (continued as it is),
    "messages" (a chat) or "prompt_token_ids", and optionally an "id" and any sampling
    parameter. The answers keep the order of the prompts. Exit code 1 if any line failed.

    \b
    Examples:
      dlcore generate prompts.txt -o answers.jsonl
      dlcore generate prompts.jsonl --model /models/Qwen3-8B --temperature 0 -o answers.jsonl
      echo '{"prompt": "1 + 1 =", "max_tokens": 4}' | dlcore generate - --jsonl
    """
    if jsonl is None:
        jsonl = str(prompts.name).endswith((".jsonl", ".ndjson"))
    config = engine_config(model, flags)
    failed = 0
    with dlcore.LLM.from_config(config) as llm:
        defaults = sampling_params(llm.default_sampling_params(), flags)
        lines = list(read_prompts(prompts, defaults, jsonl=jsonl))
        with _progress(len(lines)) as advance:
            remaining = iter(lines)
            while window := list(islice(remaining, WINDOW)):
                failed += _run_window(llm, window, raw, output)
                advance(len(window))
    if failed:
        click.echo(f'{failed} of {len(lines)} prompts failed; see their "error"', err=True)
    return 1 if failed else 0


def _run_window(llm: LLM, window: Sequence[PromptLine], raw: bool, output: IO[str]) -> int:
    """Writes one row per line; returns how many failed."""
    encoded = [(line, _encode(llm, line, raw)) for line in window]
    good = [(line, ids) for line, ids in encoded if not isinstance(ids, str)]
    answers = iter(
        llm.generate(
            [{"prompt_token_ids": ids} for _, ids in good],
            [line.params for line, _ in good],
            use_tqdm=False,
        )
    )
    failed = 0
    for line, ids in encoded:
        row = _error_row(line, ids) if isinstance(ids, str) else _row(line, next(answers))
        failed += "error" in row
        output.write(json.dumps(row, ensure_ascii=False) + "\n")
    output.flush()
    return failed


def _encode(llm: LLM, line: PromptLine, raw: bool) -> list[int] | str:
    """The prompt's tokens, checked; or why this line cannot be served."""
    try:
        ids = line.token_ids if line.token_ids is not None else _encode_text(llm, line, raw)
        llm.check(ids, line.params)
    except (ParameterError, ChatTemplateError) as error:
        return str(error)
    return ids


def _encode_text(llm: LLM, line: PromptLine, raw: bool) -> list[int]:
    tokenizer = llm.tokenizer
    if tokenizer is None:
        raise ParameterError("prompt", "this model has no tokenizer; give prompt_token_ids")
    messages = line.messages
    if messages is None and not raw and line.asks_chat and tokenizer.has_chat_template:
        messages = [{"role": "user", "content": line.text}]
    if messages is None:
        return tokenizer.encode(line.text or "")
    return tokenizer.encode(tokenizer.apply_chat_template(messages), add_special_tokens=False)


def _row(line: PromptLine, answer: RequestOutput) -> dict[str, Any]:
    completions = [
        {"text": c.text, "token_ids": c.token_ids, "finish_reason": c.finish_reason}
        for c in answer.outputs
    ]
    row = _head(line) | completions[0]
    if len(completions) > 1:
        row["outputs"] = completions
    row["usage"] = {
        "prompt_tokens": len(answer.prompt_token_ids),
        "completion_tokens": sum(len(c.token_ids) for c in answer.outputs),
    }
    if answer.error is not None:
        row["error"] = answer.error
    return row


def _error_row(line: PromptLine, why: str) -> dict[str, Any]:
    return {**_head(line), "error": why}


def _head(line: PromptLine) -> dict[str, Any]:
    head: dict[str, Any] = {"line": line.number}
    if line.id is not None:
        head["id"] = line.id
    if line.text is not None:
        head["prompt"] = line.text
    return head


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    with Progress(console=console) as bar:
        task = bar.add_task("prompts", total=total)
        yield lambda count: bar.advance(task, count)

"""`dlcore chat`: a conversation in the terminal, streamed; also works in a pipe."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import click

import dlcore
from dlcore.commands.flags import (
    SectionedCommand,
    config_file_option,
    engine_config,
    engine_flags,
    model_argument,
    sampling_flags,
    sampling_params,
)
from dlcore.conversation import Conversation
from dlcore.sampling_params import ParameterError, SamplingParams

if TYPE_CHECKING:
    from dlcore.async_llm import AsyncLLM

HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


@click.command(cls=SectionedCommand)
@model_argument
@click.option("--system", help="System prompt: who the model should be.")
@sampling_flags(max_tokens=512)
@engine_flags
@config_file_option
def chat(model: str | None, system: str | None, **flags: Any) -> int:
    """Talk to MODEL (without it: the bundled demo model) in this terminal.

    Answers stream as they are made. /reset forgets the conversation, /exit leaves, Ctrl-C
    stops an answer. In a pipe, every line is one message and only the answers are printed.

    \b
    Examples:
      dlcore chat
      dlcore chat /models/Qwen3-8B --system "Answer in one sentence." --temperature 0
      echo "What is 3 + 4?" | dlcore chat
    """
    config = engine_config(model, flags)
    interactive = sys.stdin.isatty()
    if interactive:
        click.echo(f"Loading {config.model_name} ...", err=True)
    loop = asyncio.new_event_loop()
    llm = dlcore.AsyncLLM.from_config(config)
    try:
        if llm.tokenizer is None or not llm.tokenizer.has_chat_template:
            raise click.ClickException("this model has no chat template; try `dlcore generate`")
        conversation = Conversation(llm.tokenizer, llm.max_model_len, system)
        params = sampling_params(llm.default_sampling_params(), flags)
        if interactive:
            click.echo(HELP, err=True)
        _converse(loop, llm, conversation, params, interactive)
    finally:
        loop.run_until_complete(llm.close())
        loop.close()
    return 0


def _converse(
    loop: asyncio.AbstractEventLoop,
    llm: AsyncLLM,
    conversation: Conversation,
    params: SamplingParams,
    interactive: bool,
) -> None:
    turn = itertools.count()
    for line in _lines(interactive):
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
            if interactive:
                click.echo("(forgotten)", err=True)
        elif text:
            _one_turn(loop, llm, conversation, params, text, f"chat-{next(turn)}")


def _one_turn(
    loop: asyncio.AbstractEventLoop,
    llm: AsyncLLM,
    conversation: Conversation,
    params: SamplingParams,
    text: str,
    request_id: str,
) -> None:
    try:
        prompt = conversation.ask(text)
    except ParameterError as error:
        click.echo(f"(message too long: {error})", err=True)
        return
    said: list[str] = []
    task = loop.create_task(_answer(llm, prompt, params, request_id, said))
    try:
        loop.run_until_complete(task)
    except KeyboardInterrupt:
        task.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
    click.echo()
    conversation.answered("".join(said))


async def _answer(
    llm: AsyncLLM, prompt: list[int], params: SamplingParams, request_id: str, said: list[str]
) -> None:
    """Prints the answer as it comes and leaves it in `said`."""
    async with aclosing(llm.generate(prompt, params, request_id)) as stream:
        async for output in stream:
            text = output.outputs[0].text
            said.append(text)
            click.echo(text, nl=False)
            if output.error:
                raise click.ClickException(output.error)


def _lines(interactive: bool) -> Iterator[str]:
    if not interactive:
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:  # at the prompt it only clears the line
            click.echo(err=True)

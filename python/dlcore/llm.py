"""The offline API: lists of prompts in, finished outputs out."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from dlcore.bundled_model import make_config
from dlcore.chat_template import Message
from dlcore.config import EngineConfig
from dlcore.core_request import check_prompt_text, check_request, encode_prompt
from dlcore.engine_client import EngineDeadError
from dlcore.engine_factory import open_session
from dlcore.engine_session import EngineSession
from dlcore.outputs import RequestOutput
from dlcore.request_state import merge_output
from dlcore.sampling_params import ParameterError, SamplingParams
from dlcore.tokenizer import Tokenizer

POLL_TIMEOUT_S = 1.0

Prompt = str | Mapping[str, Any]
Conversation = Sequence[Message]


class LLM:
    """`LLM(model, **options)`: the options are the fields of `EngineConfig`.

    >>> with LLM() as llm:
    ...     print(llm.generate("Hello")[0].outputs[0].text)

    Thread safety: one thread at a time.
    """

    def __init__(
        self, model: str | None = None, *, session: EngineSession | None = None, **options: Any
    ) -> None:
        """Loads the model; `model=None` is the bundled one. Raises ConfigError."""
        self._session = session or open_session(_offline(make_config(model, options)))
        self._next_id = 0
        # Also at interpreter exit: the core's thread may be inside Python.
        self._stop = weakref.finalize(self, self._session.stop)

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLM:
        return cls(session=open_session(_offline(config)))

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None when the model folder has no tokenizer: token ids only."""
        return self._session.model.tokenizer

    @property
    def model_name(self) -> str:
        return self._session.model.name

    @property
    def device(self) -> str:
        """ "cpu", "cuda" or "null"."""
        return self._session.model.device

    @property
    def vocab_size(self) -> int:
        return self._session.model.limits.vocab_size

    @property
    def max_num_seqs(self) -> int:
        return self._session.model.max_num_seqs

    @property
    def kv_tokens(self) -> int:
        """Tokens the KV cache holds."""
        return int(self.stats()["num_kv_blocks"]) * self._session.model.block_size

    @property
    def max_model_len(self) -> int:
        return self._session.model.limits.max_model_len

    def default_sampling_params(self) -> SamplingParams:
        """What the model's authors advise (generation_config.json); used when none are given."""
        return self._session.model.default_params

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int = 0,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """One finished output per prompt, in order.

        The requests that may answer longest go first, whatever their place in the list, so that
        no long answer is left to be made alone at the end (LPT, Graham 1969).

        A prompt is text, `{"prompt": text}` or `{"prompt_token_ids": [...]}`. Raises
        ParameterError before anything runs, EngineDeadError if the engine is lost.
        """
        rows = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        requests = [self._read_prompt(row) for row in rows]
        return self._run(requests, sampling_params, use_tqdm, priority, cache_salt)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """`generate` over one conversation, or a list of them, through the chat template."""
        if self.tokenizer is None:
            raise ParameterError("messages", "this model has no tokenizer; use prompt_token_ids")
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations: Any = [messages] if single else messages
        texts = [
            self.tokenizer.apply_chat_template(
                conversation,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(chat_template_kwargs or {}),
            )
            for conversation in conversations
        ]
        rows = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        requests: list[tuple[str | None, list[int]]] = list(zip(texts, rows, strict=True))
        return self._run(requests, sampling_params, use_tqdm, 0, "")

    def check(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Raises ParameterError when this engine cannot serve the request; runs nothing."""
        model = self._session.model
        check_request(prompt_token_ids, params, model.limits, model.tokenizer)

    def stats(self) -> dict[str, float]:
        """The counters of cpp/include/dlcore/engine.h's EngineStats."""
        return self._session.core.stats()

    def close(self) -> None:
        """Stops the engine and gives its memory back. Idempotent."""
        self._stop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read_prompt(self, row: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(row, str):
            row = {"prompt": row}
        if not isinstance(row, Mapping):
            raise ParameterError("prompt", f"must be text or a dict, got {type(row).__name__}")
        if "prompt_token_ids" in row:
            return row.get("prompt"), list(row["prompt_token_ids"])
        text = row.get("prompt")
        if not isinstance(text, str):
            raise ParameterError("prompt", 'a dict needs "prompt" or "prompt_token_ids"')
        model = self._session.model
        check_prompt_text(text, model.tokenizer, model.limits)
        return text, encode_prompt(text, model.tokenizer)

    def _run(
        self,
        requests: Sequence[tuple[str | None, list[int]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        show_progress: bool,
        priority: int,
        cache_salt: str,
    ) -> list[RequestOutput]:
        if not self._stop.alive:
            raise EngineDeadError("this LLM is closed")
        results = [_Result() for _ in requests]
        if sampling_params is None:
            sampling_params = self.default_sampling_params()
        all_params = _params_for_each(sampling_params, len(requests))
        first_id = self._next_id
        self._next_id += len(requests)
        try:
            for i in _longest_first(all_params):
                text, ids = requests[i]
                self._session.open(
                    str(first_id + i),
                    text,
                    ids,
                    all_params[i],
                    results[i].put,
                    priority=priority,
                    cache_salt=cache_salt,
                )
            self._wait(results, show_progress)
        finally:
            for request_id in self._session.request_ids():
                self._session.abort(request_id)
        return [result.output() for result in results]

    def _wait(self, results: Sequence[_Result], show_progress: bool) -> None:
        with _progress_bar(len(results), show_progress) as bar:
            while self._session.num_requests:
                batch = self._session.core.poll(POLL_TIMEOUT_S)
                if batch is None:
                    self._session.check_alive()
                    continue
                self._session.process(batch)
                if bar is not None:
                    bar.update(bar.task_ids[0], completed=len(results) - self._session.num_requests)


class _Result:
    """Collects one request's deltas."""

    def __init__(self) -> None:
        self._output: RequestOutput | None = None
        self._error: Exception | None = None

    def put(self, output: RequestOutput | Exception) -> None:
        if isinstance(output, Exception):
            self._error = output
        elif self._output is None:
            self._output = output
        else:
            merge_output(self._output, output)

    def output(self) -> RequestOutput:
        if self._error is not None:
            raise self._error
        assert self._output is not None
        self._output.outputs.sort(key=lambda completion: completion.index)
        return self._output


def _params_for_each(
    params: SamplingParams | Sequence[SamplingParams], count: int
) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise ParameterError(
            "sampling_params", f"has {len(params)} entries for {count} prompts; give one each"
        )
    return list(params)


def _longest_first(all_params: Sequence[SamplingParams]) -> list[int]:
    """Indices by the most tokens that may be answered; equal ones keep their order."""

    def may_answer(i: int) -> float:
        max_tokens = all_params[i].max_tokens
        return math.inf if max_tokens is None else max_tokens

    return sorted(range(len(all_params)), key=may_answer, reverse=True)


def _offline(config: EngineConfig) -> EngineConfig:
    """The caller waits for a list's last answer: prompts whose answers may be it do not wait."""
    if config.hold_back_last_answers is not None:
        return config
    return replace(config, hold_back_last_answers=False)


@contextmanager
def _progress_bar(total: int, show: bool) -> Iterator[Progress | None]:
    console = Console(stderr=True)
    if not show or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task("requests", total=total)
        yield bar

"""One choice of a text completion, from what an engine gave for it."""

from __future__ import annotations

from msgspec import UNSET

from dlcore.outputs import CompletionOutput, LogprobsAtPosition
from dlcore.serve.collect import Collected
from dlcore.serve.generation import Job
from dlcore.serve.logprobs import TokenTexts, completion_logprobs
from dlcore.serve.schemas.completions import CompletionChoice, CompletionLogprobs, CompletionRequest

PromptLogprobs = list[LogprobsAtPosition | None] | None


class ChoiceBuilder:
    """Turns a choice's outputs into CompletionChoice, echoing the prompt before the first."""

    def __init__(self, request: CompletionRequest, job: Job, index: int, texts: TokenTexts) -> None:
        self.index = index
        self._request = request
        self._job = job
        self._texts = texts
        self._offset = 0
        self._begun = False

    def build(
        self, out: CompletionOutput | Collected, prompt_logprobs: PromptLogprobs
    ) -> CompletionChoice:
        echo = bool(self._request.echo) and not self._begun
        first, self._begun = not self._begun, True
        silent = self._request.max_tokens == 0  # echo only: the one token made is not shown
        text = "" if silent else out.text
        token_ids = [] if silent else out.token_ids
        logprobs = None if silent else self._logprobs(token_ids, out.logprobs)
        if echo:
            text = self._prompt_text() + text
            logprobs = _joined(self._prompt_part(prompt_logprobs), logprobs)
        wants_ids = bool(self._request.return_token_ids)
        return CompletionChoice(
            index=self.index,
            text=text,
            logprobs=logprobs,
            finish_reason="length" if silent and out.finish_reason else out.finish_reason,
            stop_reason=None if silent else out.stop_reason,
            token_ids=token_ids if wants_ids else UNSET,
            prompt_token_ids=self._job.prompt.token_ids if wants_ids and first else UNSET,
        )

    def _prompt_text(self) -> str:
        prompt = self._job.prompt
        if prompt.text is not None:
            return prompt.text
        tokenizer = self._texts.tokenizer
        return "" if tokenizer is None else tokenizer.decode(prompt.token_ids)

    def _prompt_part(self, positions: PromptLogprobs) -> CompletionLogprobs | None:
        if positions is None or self._request.logprobs is None:
            return None
        ids = self._job.prompt.token_ids
        part = completion_logprobs(ids, positions, self._request.logprobs, self._texts, 0)
        return part

    def _logprobs(
        self, token_ids: list[int], positions: list[LogprobsAtPosition] | None
    ) -> CompletionLogprobs | None:
        top = self._request.logprobs
        if top is None:
            return None
        if positions is None:  # generated elsewhere: only their length matters here
            self._offset += sum(len(self._texts.name(i)) for i in token_ids)
            return None
        start = len(self._prompt_text()) if self._request.echo else 0
        part = completion_logprobs(token_ids, positions, top, self._texts, start + self._offset)
        self._offset += sum(len(token) for token in part.tokens)
        return part


def _joined(
    first: CompletionLogprobs | None, second: CompletionLogprobs | None
) -> CompletionLogprobs | None:
    if first is None or second is None:
        return first or second
    return CompletionLogprobs(
        text_offset=first.text_offset + second.text_offset,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        tokens=first.tokens + second.tokens,
        top_logprobs=first.top_logprobs + second.top_logprobs,
    )

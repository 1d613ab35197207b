"""Counts the tokens of one chat request, for its usage."""

from __future__ import annotations

from collections.abc import Sequence

from dlcore.outputs import RequestOutput
from dlcore.serve.answer import Reading
from dlcore.serve.generation import Job
from dlcore.serve.schemas.common import Usage, make_usage
from dlcore.tokenizer import Tokenizer


class TokenCounts:
    def __init__(self, job: Job, tokenizer: Tokenizer | None) -> None:
        self.prompt = len(job.prompt.token_ids)
        self.completion = 0
        self.cached = 0
        self._tokenizer = tokenizer

    def add(self, output: RequestOutput) -> None:
        self.cached = output.num_cached_tokens
        for out in output.outputs:
            self.completion += len(out.token_ids)

    def usage(self, readings: Sequence[Reading]) -> Usage:
        return make_usage(self.prompt, self.completion, self.cached, self.reasoning(readings))

    def reasoning(self, readings: Sequence[Reading]) -> int:
        """Tokens of the reasoning text. Encoded again: batches of tokens have no seams in it."""
        if self._tokenizer is None:
            return 0
        texts = ["".join(reading.reasoning) for reading in readings]
        return sum(
            len(self._tokenizer.encode(text, add_special_tokens=False)) for text in texts if text
        )

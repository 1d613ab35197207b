"""Adds a stream's deltas up to the whole answer, for responses that are not streamed."""

from __future__ import annotations

from dataclasses import dataclass, field

from dlcore.outputs import CompletionOutput, KvLease, LogprobsAtPosition, RequestOutput


@dataclass(slots=True)
class Collected:
    """One completion, whole."""

    index: int
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobsAtPosition] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def as_output(self) -> CompletionOutput:
        """The sum of the outputs, as if they had come at once."""
        return CompletionOutput(
            self.index, self.text, self.token_ids, None, self.logprobs, self.finish_reason
        )

    def add(self, out: CompletionOutput) -> None:
        self.pieces.append(out.text)
        self.token_ids += out.token_ids
        if out.logprobs is not None:
            self.logprobs = (self.logprobs or []) + out.logprobs
        if out.finish_reason is not None:
            self.finish_reason = out.finish_reason
            self.stop_reason = out.stop_reason


class Collector:
    """All completions of one engine request, and what belongs to the request as a whole."""

    def __init__(self, n: int) -> None:
        self.choices = [Collected(index) for index in range(n)]
        self.prompt_logprobs: list[LogprobsAtPosition | None] | None = None
        self.num_cached_tokens = 0
        self.kv_lease: KvLease | None = None

    def add(self, output: RequestOutput) -> None:
        self.num_cached_tokens = output.num_cached_tokens
        self.kv_lease = output.kv_lease or self.kv_lease
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = (self.prompt_logprobs or []) + output.prompt_logprobs
        for out in output.outputs:
            self.choices[out.index].add(out)

    @property
    def completion_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices)

"""One request while it runs: its completions, and where its output goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlcore.completion_state import CompletionState, CoreLogprobs, logprobs_at
from dlcore.outputs import CompletionOutput, KvLease, LogprobsAtPosition, RequestOutput
from dlcore.resumption import ResumeTokenIds
from dlcore.sampling_params import SamplingParams
from dlcore.tokenizer import Tokenizer

OutputSink = Callable[[RequestOutput | Exception], None]


@dataclass(slots=True, eq=False)
class RequestState:
    """`core_ids` are the core's names of the completions submitted so far."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    priority: int
    cache_salt: str
    sink: OutputSink
    completions: list[CompletionState]
    num_open: int
    # Completions not yet submitted, first one first; empty after the last.
    unsubmitted: list[int]
    resume_token_ids: ResumeTokenIds | None = None
    core_ids: list[int] = field(default_factory=list)
    num_cached_tokens: int = 0
    prompt_logprobs: list[LogprobsAtPosition | None] | None = None
    grammar: Any = None  # compiled from params.structured_outputs
    kv_source: Any = None  # for the first submission
    hold_kv: bool = False
    kv_lease: KvLease | None = None

    def resume_of(self, index: int) -> Sequence[int]:
        """The tokens completion `index` brings along."""
        return (self.resume_token_ids[index] or ()) if self.resume_token_ids else ()

    def repeat(self, deltas: list[CompletionOutput]) -> None:
        """Delivers what was generated elsewhere, marked as such."""
        self.sink(
            RequestOutput(
                self.request_id, self.prompt, self.prompt_token_ids, deltas, False, resumed=True
            )
        )

    @property
    def finished(self) -> bool:
        return self.num_open == 0

    def lend(self, lease: KvLease) -> None:
        """Delivers the lease, before any token."""
        self.kv_lease = lease
        self.sink(
            RequestOutput(
                self.request_id, self.prompt, self.prompt_token_ids, [], False, kv_lease=lease
            )
        )

    def deliver(self, delta: CompletionOutput, error: str | None = None) -> None:
        if delta.finish_reason is not None:
            self.num_open -= 1
        self.sink(
            RequestOutput(
                self.request_id,
                self.prompt,
                self.prompt_token_ids,
                [delta],
                self.num_open == 0,
                self.take_prompt_logprobs(),
                self.num_cached_tokens,
                error,
                kv_lease=self.kv_lease,
            )
        )

    def add_prompt_logprobs(
        self, rows: Sequence[CoreLogprobs], tokenizer: Tokenizer | None
    ) -> None:
        """Rows arrive chunk by chunk, from the prompt's second token on."""
        if self.prompt_logprobs is None:
            self.prompt_logprobs = [None]
        for row in rows:
            token_id = self.prompt_token_ids[len(self.prompt_logprobs)]
            self.prompt_logprobs.append(logprobs_at(token_id, row, tokenizer))

    def take_prompt_logprobs(self) -> list[LogprobsAtPosition | None] | None:
        """All of them at once, with the first output after the prompt is done."""
        found = self.prompt_logprobs
        if found is None and self.params.prompt_logprobs is not None:
            found = [None] if len(self.prompt_token_ids) == 1 else None
        if found is None or len(found) < len(self.prompt_token_ids):
            return None
        self.prompt_logprobs = None
        return found


def merge_output(into: RequestOutput, new: RequestOutput) -> None:
    """Appends the delta `new` to `into`, as if both had come at once."""
    for delta in new.outputs:
        known = next((c for c in into.outputs if c.index == delta.index), None)
        if known is None:
            into.outputs.append(delta)
        else:
            _merge_completion(known, delta)
    into.finished = new.finished
    into.num_cached_tokens = new.num_cached_tokens
    into.error = into.error or new.error
    into.kv_lease = new.kv_lease or into.kv_lease
    if new.prompt_logprobs is not None:
        into.prompt_logprobs = new.prompt_logprobs


def _merge_completion(into: CompletionOutput, new: CompletionOutput) -> None:
    into.text += new.text
    into.token_ids += new.token_ids
    if new.logprobs is not None:
        into.logprobs = (into.logprobs or []) + new.logprobs
        into.cumulative_logprob = new.cumulative_logprob
    into.finish_reason = new.finish_reason
    into.stop_reason = new.stop_reason

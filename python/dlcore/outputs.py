"""What a request gives back: the same objects offline, over HTTP and over gRPC."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Logprob:
    """One candidate token at one position (natural log, `rank` 1 = most likely)."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


# Token id -> Logprob for one position: the sampled (or prompt) token and the top-k.
LogprobsAtPosition = dict[int, Logprob]


@dataclass(slots=True)
class CompletionOutput:
    """One of a request's `n` completions.

    In a stream (`AsyncLLM.generate`) `text`, `token_ids` and `logprobs` hold what is
    new since the last yield; offline they hold everything.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[LogprobsAtPosition] | None = None
    finish_reason: str | None = None  # "stop" | "length" | "abort" | "error"
    stop_reason: int | str | None = None  # the stop id or string; None for EOS


@dataclass(frozen=True, slots=True)
class KvLease:
    """The prompt's KV, kept by the engine for a reader (see kv_peer). `num_tokens`: that are
    written, or will be."""

    lease_id: int
    epoch: int
    num_tokens: int


@dataclass(slots=True)
class RequestOutput:
    """The state of one request; `finished` once every completion has a finish_reason."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[LogprobsAtPosition | None] | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    # True for the first output of a resumed request: it repeats what was generated elsewhere
    # (without logprobs), for readers that keep a state. It is not new.
    resumed: bool = False
    # From the first output on, which may hold no token, of a request that asked for it.
    kv_lease: KvLease | None = None

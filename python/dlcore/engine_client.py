"""What every front end needs of an engine, whether in this process or behind a socket.

`AsyncLLM` (llm.py) is the in-process implementation. HTTP, gRPC and the offline API
are written against this protocol alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from dlcore.kv_peer import KvPeer
from dlcore.outputs import RequestOutput
from dlcore.resumption import ResumeTokenIds
from dlcore.sampling_params import SamplingParams
from dlcore.tokenizer import Tokenizer


class EngineDeadError(RuntimeError):
    """The engine stopped or stalled; requests cannot be served until it is restarted."""


class QueueFullError(RuntimeError):
    """max_waiting_requests is reached; try again later (HTTP 429)."""


class EngineClient(Protocol):
    """An engine to send requests to. All methods are called on one event loop."""

    @property
    def model_name(self) -> str: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def tokenizer(self) -> Tokenizer | None:
        """None when the model folder has no tokenizer: token ids only."""
        ...

    def default_sampling_params(self) -> SamplingParams:
        """What the model's authors advise; holds for what a request leaves open."""
        ...

    @property
    def kv_peer(self) -> KvPeer | None:
        """Null unless the engine moves KV to or from other ones."""
        ...

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str = "",
        resume_token_ids: ResumeTokenIds | None = None,
        kv_source: Any = None,
        hold_kv: bool = False,
    ) -> AsyncIterator[RequestOutput]:
        """Yields deltas (see CompletionOutput) until `finished`.

        `resume_token_ids`: per completion, the tokens another engine generated before this one
        takes over, or None for a completion that finished there. They count as this request's
        own; a first output with `resumed` set repeats them, the others hold what follows.
        With the same seed and parameters that is what the other engine would have sent.

        `kv_source` (KvPeer.source): where another engine keeps the prompt's KV. `hold_kv`: keep
        this request's KV for another engine, when max_tokens ends it; its last output has the
        lease.

        Closing the iterator (or cancelling its task) aborts the request. Raises
        ParameterError for a prompt or parameter the engine cannot serve, QueueFullError,
        EngineDeadError.
        """
        ...

    async def abort(self, request_id: str) -> None: ...
    def stats(self) -> dict[str, float]:
        """The counters of cpp/include/dlcore/engine.h's EngineStats."""
        ...

    def is_healthy(self) -> bool: ...
    async def close(self) -> None: ...

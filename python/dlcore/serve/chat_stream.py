"""A streamed chat completion: engine outputs in, SSE bytes out."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from dlcore.outputs import CompletionOutput, RequestOutput
from dlcore.serve.chat_chunks import ChatChunks
from dlcore.serve.errors import ApiError
from dlcore.serve.logprobs import TokenTexts, chat_logprobs
from dlcore.serve.schemas.chat import ChatChunkChoice, ChatDelta, ChatRequest, ChoiceLogprobs
from dlcore.serve.schemas.common import Usage, make_usage
from dlcore.serve.sse import DONE


class ChatStream:
    """The StreamEncoder of /v1/chat/completions."""

    def __init__(
        self, request: ChatRequest, chunks: ChatChunks, texts: TokenTexts, prompt_ids: list[int]
    ) -> None:
        options = request.stream_options
        self._chunks = chunks
        self._texts = texts
        self._n = request.n or 1
        self._prompt_ids = prompt_ids
        self._top = request.top_logprobs or 0
        self._include_usage = options is not None and options.include_usage
        self._usage_in_each = options is not None and options.continuous_usage_stats
        self._token_ids = bool(request.return_token_ids)
        # Chunks with only a text take the short way.
        self._plain = not (request.logprobs or self._usage_in_each or self._token_ids)
        self._completion_tokens = 0
        self._cached = 0

    def on_start(self) -> bytes:
        return b"".join([self._chunks.role(index) for index in range(self._n)])

    def on_output(self, job: int, output: RequestOutput) -> bytes:
        self._cached = output.num_cached_tokens
        return b"".join([self._choice(choice) for choice in output.outputs])

    def on_end(self) -> bytes:
        return (self._chunks.usage(self._usage()) if self._include_usage else b"") + DONE

    def on_error(self, error: ApiError) -> bytes:
        return b"data: " + msgspec.json.encode(error.openai()) + b"\n\n" + DONE

    def _choice(self, out: CompletionOutput) -> bytes:
        self._completion_tokens += len(out.token_ids)
        if self._plain and out.finish_reason is None:
            return self._chunks.text(out.index, out.text) if out.text else b""
        if not (out.text or out.finish_reason or out.token_ids):
            return b""
        chunk = ChatChunkChoice(
            index=out.index,
            delta=ChatDelta(content=out.text),
            logprobs=self._logprobs(out),
            finish_reason=out.finish_reason,
            stop_reason=UNSET if out.stop_reason is None else out.stop_reason,
            token_ids=out.token_ids if self._token_ids else UNSET,
        )
        return self._chunks.choice(chunk, self._usage() if self._usage_in_each else None)

    def _logprobs(self, out: CompletionOutput) -> ChoiceLogprobs | None:
        if out.logprobs is None:
            return None
        entries = chat_logprobs(out.token_ids, out.logprobs, self._top, self._texts)
        return ChoiceLogprobs(content=entries)

    def _usage(self) -> Usage:
        return make_usage(len(self._prompt_ids), self._completion_tokens, self._cached)

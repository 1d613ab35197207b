"""A streamed chat completion: engine outputs in, SSE bytes out."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from dlcore.outputs import CompletionOutput, RequestOutput
from dlcore.serve.chat_chunks import ChatChunks
from dlcore.serve.chat_deltas import chat_deltas
from dlcore.serve.chat_job import ChatCall
from dlcore.serve.errors import ApiError
from dlcore.serve.logprobs import TokenTexts, chat_logprobs
from dlcore.serve.parsers.events import ContentDelta
from dlcore.serve.schemas.chat import ChatChunkChoice, ChatDelta, ChoiceLogprobs
from dlcore.serve.schemas.common import Usage
from dlcore.serve.sse import DONE
from dlcore.serve.token_counts import TokenCounts


class ChatStream:
    """The StreamEncoder of /v1/chat/completions."""

    def __init__(self, call: ChatCall, chunks: ChatChunks, texts: TokenTexts) -> None:
        request = call.request
        options = request.stream_options
        self._call = call
        self._chunks = chunks
        self._texts = texts
        self._readings = [call.reader.reading() for _ in range(call.job.params.n)]
        self._counts = TokenCounts(call.job, texts.tokenizer)
        self._top = request.top_logprobs or 0
        self._include_usage = options is not None and options.include_usage
        self._usage_in_each = options is not None and options.continuous_usage_stats
        self._token_ids = bool(request.return_token_ids)
        # Chunks with only a text take the short way.
        self._text_only = not (request.logprobs or self._usage_in_each or self._token_ids)

    def on_start(self) -> bytes:
        job = self._call.job
        new = [i for i in range(len(self._readings)) if not job.began_elsewhere(i)]
        roles = [self._chunks.role(index) for index in new]
        if self._call.echo:
            roles += [self._chunks.text(index, self._call.echo) for index in new]
        return b"".join(roles)

    def on_output(self, job: int, output: RequestOutput) -> bytes:
        self._counts.add(output)
        return b"".join([self._choice(choice) for choice in output.outputs])

    def on_end(self) -> bytes:
        return (self._chunks.usage(self._usage()) if self._include_usage else b"") + DONE

    def on_error(self, error: ApiError) -> bytes:
        return b"data: " + msgspec.json.encode(error.openai()) + b"\n\n" + DONE

    def _choice(self, out: CompletionOutput) -> bytes:
        events = self._readings[out.index].read(out)
        if self._text_only and out.finish_reason is None:
            if not events:
                return b""
            if len(events) == 1 and isinstance(events[0], ContentDelta):
                return self._chunks.text(out.index, events[0].text)
        deltas = chat_deltas(events)
        if not deltas:
            if out.finish_reason is None and not self._carries_more(out):
                return b""
            deltas = [ChatDelta()]
        chunks = [ChatChunkChoice(index=out.index, delta=delta) for delta in deltas]
        self._complete(chunks, out)
        usage = self._usage() if self._usage_in_each else None
        return b"".join([self._chunks.choice(chunk, usage) for chunk in chunks])

    def _carries_more(self, out: CompletionOutput) -> bool:
        return bool(out.token_ids) and (out.logprobs is not None or self._token_ids)

    def _complete(self, chunks: list[ChatChunkChoice], out: CompletionOutput) -> None:
        """What belongs to the output as a whole: logprobs on its first chunk, the rest on its last.

        Token ids close an output: whoever has them has all of its text.
        """
        first, last = chunks[0], chunks[-1]
        if out.logprobs is not None:
            entries = chat_logprobs(out.token_ids, out.logprobs, self._top, self._texts)
            first.logprobs = ChoiceLogprobs(content=entries)
        if self._token_ids:
            last.token_ids = out.token_ids
        if out.finish_reason is not None:
            last.finish_reason = self._readings[out.index].finish_reason(out.finish_reason)
            last.stop_reason = UNSET if out.stop_reason is None else out.stop_reason

    def _usage(self) -> Usage:
        return self._counts.usage(self._readings)

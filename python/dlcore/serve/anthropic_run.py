"""One message of the Anthropic API, streamed or whole."""

from __future__ import annotations

import msgspec

from dlcore.named_event import named_event
from dlcore.outputs import RequestOutput
from dlcore.serve.anthropic_blocks import ContentBlocks
from dlcore.serve.chat_job import ChatCall
from dlcore.serve.errors import ApiError
from dlcore.serve.record import new_id
from dlcore.serve.resume import token_ids_event
from dlcore.serve.schemas.anthropic import AnthropicUsage, MessageResponse, StreamEvent
from dlcore.serve.token_counts import TokenCounts

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageRun:
    """Also the StreamEncoder of /v1/messages."""

    def __init__(self, call: ChatCall, model: str, token_ids: bool) -> None:
        """token_ids: events that name the tokens behind the events before them."""
        self._model = model
        self._token_ids = token_ids
        self._id = f"msg_{new_id()}"
        self._stream = bool(call.request.stream)
        self._reading = call.reader.reading()
        self._counts = TokenCounts(call.job, None)
        self._blocks = ContentBlocks(self._emit)
        self._events: list[bytes] = []
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None

    def on_start(self) -> bytes:
        self._emit(StreamEvent(type="message_start", message=self.render()))
        self._emit(StreamEvent(type="ping"))
        return self._take()

    def on_output(self, job: int, output: RequestOutput) -> bytes:
        self._counts.add(output)
        for out in output.outputs:
            self._blocks.add(self._reading.read(out))
            if out.finish_reason is not None:
                self._blocks.close()
                self._end(self._reading.finish_reason(out.finish_reason), out.stop_reason)
            if self._stream and self._token_ids:
                self._events.append(token_ids_event(out))
        return self._take()

    def on_end(self) -> bytes:
        delta = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence}
        self._emit(StreamEvent(type="message_delta", delta=delta, usage=self._usage()))
        self._emit(StreamEvent(type="message_stop"))
        return self._take()

    def on_error(self, error: ApiError) -> bytes:
        self._emit(StreamEvent(type="error", error=error.anthropic()["error"]))
        return self._take()

    def render(self) -> MessageResponse:
        return MessageResponse(
            id=self._id,
            model=self._model,
            content=self._blocks.whole(),
            stop_reason=self._stop_reason,
            stop_sequence=self._stop_sequence,
            usage=self._usage(),
        )

    def _end(self, reason: str | None, stop: int | str | None) -> None:
        self._stop_reason = _STOP_REASONS.get(reason or "", reason)
        if isinstance(stop, str):
            self._stop_reason, self._stop_sequence = "stop_sequence", stop

    def _usage(self) -> AnthropicUsage:
        return AnthropicUsage(
            input_tokens=self._counts.prompt - self._counts.cached,
            cache_read_input_tokens=self._counts.cached,
            output_tokens=self._counts.completion,
        )

    def _emit(self, event: StreamEvent) -> None:
        if self._stream:
            self._events.append(named_event(event.type, msgspec.json.encode(event)))

    def _take(self) -> bytes:
        data = b"".join(self._events)
        self._events.clear()
        return data

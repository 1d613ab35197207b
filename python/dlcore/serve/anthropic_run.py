"""One message of the Anthropic API, streamed or whole."""

from __future__ import annotations

from dlcore.outputs import RequestOutput
from dlcore.serve.anthropic_blocks import ContentBlocks
from dlcore.serve.chat_job import ChatCall
from dlcore.serve.errors import ApiError
from dlcore.serve.event_buffer import EventBuffer
from dlcore.serve.record import new_id
from dlcore.serve.schemas.anthropic import AnthropicUsage, MessageResponse, StreamEvent
from dlcore.serve.token_counts import TokenCounts

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class _Events(EventBuffer):
    def add(self, event: StreamEvent) -> None:
        self.append(event.type, event)


class MessageRun:
    """Also the StreamEncoder of /v1/messages."""

    def __init__(self, call: ChatCall, model: str, token_ids: bool) -> None:
        """token_ids: events that name the tokens behind the events before them."""
        self._model = model
        self._token_ids = token_ids
        self._id = f"msg_{new_id()}"
        self._reading = call.reader.reading()
        self._counts = TokenCounts(call.job, None)
        self._events = _Events(stream=bool(call.request.stream))
        self._blocks = ContentBlocks(self._events.add)
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None

    def on_start(self) -> bytes:
        self._events.add(StreamEvent(type="message_start", message=self.render()))
        self._events.add(StreamEvent(type="ping"))
        return self._events.take()

    def on_output(self, job: int, output: RequestOutput) -> bytes:
        self._counts.add(output)
        for out in output.outputs:
            self._blocks.add(self._reading.read(out))
            if out.finish_reason is not None:
                self._blocks.close()
                self._end(self._reading.finish_reason(out.finish_reason), out.stop_reason)
            if self._token_ids:
                self._events.append_token_ids(out)
        return self._events.take()

    def on_end(self) -> bytes:
        delta = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence}
        self._events.add(StreamEvent(type="message_delta", delta=delta, usage=self._usage()))
        self._events.add(StreamEvent(type="message_stop"))
        return self._events.take()

    def on_error(self, error: ApiError) -> bytes:
        self._events.add(StreamEvent(type="error", error=error.anthropic()["error"]))
        return self._events.take()

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

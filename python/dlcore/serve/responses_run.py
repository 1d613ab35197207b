"""One response from its creation to its end, whether streamed, awaited or in the background."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from dlcore.outputs import RequestOutput
from dlcore.serve.chat_job import ChatCall
from dlcore.serve.errors import ApiError
from dlcore.serve.event_buffer import EventBuffer
from dlcore.serve.generation import Generation
from dlcore.serve.logprobs import TokenTexts, chat_logprobs
from dlcore.serve.responses_items import OutputItems
from dlcore.serve.schemas.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseError,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
)
from dlcore.serve.token_counts import TokenCounts


class _Events(EventBuffer):
    def __init__(self, *, stream: bool) -> None:
        super().__init__(stream=stream)
        self._sequence = 0

    def add(self, name: str, fields: dict[str, Any]) -> None:
        self.append(name, {"type": name, "sequence_number": self._sequence, **fields})
        self._sequence += 1


class ResponseRun:
    """Also the StreamEncoder of /v1/responses."""

    def __init__(
        self,
        request: ResponsesRequest,
        call: ChatCall,
        generation: Generation,
        texts: TokenTexts,
        model: str,
        response_id: str,
    ) -> None:
        self.id = response_id
        self.request = request
        self.call = call
        self.generation = generation
        self.status = "queued" if request.background else "in_progress"
        self._texts = texts
        self._model = model
        self._created = int(time.time())
        self._reading = call.reader.reading()
        self._counts = TokenCounts(call.job, texts.tokenizer)
        self._error: ResponseError | None = None
        self._events = _Events(stream=bool(request.stream))
        self.items = OutputItems(self._events.add)

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "in_progress")

    def on_start(self) -> bytes:
        for name in ("response.created", "response.in_progress"):
            self._events.add(name, {"response": self.render()})
        return self._events.take()

    def on_output(self, job: int, output: RequestOutput) -> bytes:
        if not self.ended:
            self.status = "in_progress"
        self._counts.add(output)
        for out in output.outputs:
            entries: list[Any] = []
            if out.logprobs is not None:
                top = self.call.request.top_logprobs or 0
                entries = chat_logprobs(out.token_ids, out.logprobs, top, self._texts)
            self.items.add(self._reading.read(out), entries)
            if out.finish_reason is not None:
                self._end(out.finish_reason)
            if self.request.return_token_ids:
                self._events.append_token_ids(out)
        return self._events.take()

    def on_end(self) -> bytes:
        name = {"completed": "completed", "failed": "failed"}.get(self.status, "incomplete")
        self._events.add(f"response.{name}", {"response": self.render()})
        return self._events.take()

    def on_error(self, error: ApiError) -> bytes:
        self.fail(error)
        self._events.add("response.failed", {"response": self.render()})
        return self._events.take()

    def fail(self, error: ApiError) -> None:
        self.status = "failed"
        self._error = ResponseError(code=error.code or "server_error", message=error.message)

    def cancel(self) -> None:
        if not self.ended:
            self.items.close("incomplete")
            self.status = "cancelled"

    def render(self) -> ResponseObject:
        request = self.request
        return ResponseObject(
            id=self.id,
            created_at=self._created,
            status=self.status,
            model=self._model,
            output=self.items.items,
            error=self._error,
            incomplete_details=self._incomplete(),
            instructions=request.instructions,
            metadata=request.metadata or {},
            parallel_tool_calls=request.parallel_tool_calls is not False,
            temperature=self.call.job.params.temperature,
            top_p=self.call.job.params.top_p,
            tool_choice=request.tool_choice or "auto",
            tools=request.tools or [],
            background=bool(request.background),
            max_output_tokens=request.max_output_tokens,
            previous_response_id=request.previous_response_id,
            reasoning=request.reasoning,
            text=request.text or msgspec.UNSET,
            truncation=request.truncation or "disabled",
            store=request.store is not False,
            usage=self._usage() if self.ended else None,
            user=request.user,
        )

    def _end(self, reason: str) -> None:
        whole = reason == "stop"
        self.items.close("completed" if whole else "incomplete")
        if self.status != "cancelled":
            self.status = {"stop": "completed", "abort": "cancelled"}.get(reason, "incomplete")

    def _incomplete(self) -> IncompleteDetails | None:
        return (
            IncompleteDetails(reason="max_output_tokens") if self.status == "incomplete" else None
        )

    def _usage(self) -> ResponseUsage:
        counts = self._counts
        return ResponseUsage(
            input_tokens=counts.prompt,
            input_tokens_details=InputTokensDetails(cached_tokens=counts.cached),
            output_tokens=counts.completion,
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=counts.reasoning([self._reading])
            ),
            total_tokens=counts.prompt + counts.completion,
        )

"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from dataclasses import replace

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from dlcore.serve.answer import Reading
from dlcore.serve.chat_chunks import ChatChunks
from dlcore.serve.chat_deltas import assistant_message
from dlcore.serve.chat_job import ChatCall, chat_call
from dlcore.serve.chat_stream import ChatStream
from dlcore.serve.collect import Collected, Collector
from dlcore.serve.context import ServerContext
from dlcore.serve.endpoint import json_body, json_response, stream_response
from dlcore.serve.generation import Generation, run_to_end
from dlcore.serve.handover import handed_over, ticket_stream, with_handover
from dlcore.serve.logprobs import TokenTexts, chat_logprobs, prompt_logprobs
from dlcore.serve.record import new_id, record_of, safe_id
from dlcore.serve.schemas.chat import ChatChoice, ChatCompletion, ChatRequest, ChoiceLogprobs
from dlcore.serve.token_counts import TokenCounts


class ChatEndpoint:
    def __init__(self, ctx: ServerContext) -> None:
        self._ctx = ctx

    async def create(self, request: Request) -> Response:
        body = await json_body(self._ctx, request, ChatRequest)
        return await self.answer(request, body)

    async def answer(self, request: Request, body: ChatRequest) -> Response:
        ctx, record = self._ctx, record_of(request)
        record.model = ctx.resolve_model(body.model)
        record.stream = bool(body.stream)
        call = await chat_call(ctx, body)
        call = replace(call, job=with_handover(ctx, body, [call.job])[0])
        generation = Generation(ctx.engine, ctx.metrics, record, [call.job])
        response_id = f"chatcmpl-{safe_id(body.request_id) or new_id()}"
        texts = TokenTexts(ctx.engine.tokenizer, bool(body.return_tokens_as_token_ids))
        if (tickets := ticket_stream(ctx, body, generation)) is not None:
            return tickets
        if body.stream:
            chunks = ChatChunks(
                response_id, int(time.time()), record.model, null_usage=_wants_usage(body)
            )
            return stream_response(ctx, generation, ChatStream(call, chunks, texts))
        collector = Collector(call.job.params.n)
        await run_to_end(
            generation, request, ctx.config.request_timeout, lambda _, out: collector.add(out)
        )
        answer = chat_completion(call, collector, texts, response_id, record.model)
        answer.kv_transfer_params = handed_over(ctx, call.job, collector)
        return json_response(answer)


def chat_completion(
    call: ChatCall, collector: Collector, texts: TokenTexts, response_id: str, model: str
) -> ChatCompletion:
    counts = TokenCounts(call.job, texts.tokenizer)
    counts.completion, counts.cached = collector.completion_tokens, collector.num_cached_tokens
    readings = [call.reader.reading() for _ in collector.choices]
    pairs = zip(collector.choices, readings, strict=True)
    choices = [_choice(call, choice, reading, texts) for choice, reading in pairs]
    prompt_lps = prompt_logprobs(collector.prompt_logprobs, texts)
    return ChatCompletion(
        id=response_id,
        created=int(time.time()),
        model=model,
        choices=choices,
        usage=counts.usage(readings),
        prompt_logprobs=UNSET if prompt_lps is None else prompt_lps,
        prompt_token_ids=call.job.prompt.token_ids if call.request.return_token_ids else UNSET,
    )


def _choice(call: ChatCall, choice: Collected, reading: Reading, texts: TokenTexts) -> ChatChoice:
    message = assistant_message(reading.read(choice.as_output()))
    if call.echo:
        message.content = call.echo + (message.content or "")
    logprobs = None
    if choice.logprobs is not None:
        top = call.request.top_logprobs or 0
        entries = chat_logprobs(choice.token_ids, choice.logprobs, top, texts)
        logprobs = ChoiceLogprobs(content=entries)
    return ChatChoice(
        index=choice.index,
        message=message,
        logprobs=logprobs,
        finish_reason=reading.finish_reason(choice.finish_reason),
        stop_reason=choice.stop_reason,
        token_ids=choice.token_ids if call.request.return_token_ids else UNSET,
    )


def _wants_usage(body: ChatRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage

"""POST /v1/chat/completions."""

from __future__ import annotations

import time

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from dlcore.serve.body import decode, read_body
from dlcore.serve.chat_chunks import ChatChunks
from dlcore.serve.chat_job import chat_job
from dlcore.serve.chat_stream import ChatStream
from dlcore.serve.collect import Collected, Collector
from dlcore.serve.context import ServerContext
from dlcore.serve.generation import Generation, Job, run_to_end
from dlcore.serve.logprobs import TokenTexts, chat_logprobs, prompt_logprobs
from dlcore.serve.record import new_id, record_of, safe_id
from dlcore.serve.schemas.chat import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatRequest,
    ChoiceLogprobs,
)
from dlcore.serve.schemas.common import make_usage
from dlcore.serve.sse import EventStream


class ChatEndpoint:
    def __init__(self, ctx: ServerContext) -> None:
        self._ctx = ctx

    async def create(self, request: Request) -> Response:
        ctx, record = self._ctx, record_of(request)
        raw = await read_body(request, ctx.config.max_body_bytes, ctx.config.body_timeout)
        body = decode(raw, ChatRequest)
        ctx.unknown_fields.note(raw, ChatRequest)
        record.model = ctx.resolve_model(body.model)
        record.stream = bool(body.stream)
        job = await chat_job(ctx, body)
        generation = Generation(ctx.engine, ctx.metrics, record, [job])
        response_id = f"chatcmpl-{safe_id(body.request_id) or new_id()}"
        texts = TokenTexts(ctx.engine.tokenizer, bool(body.return_tokens_as_token_ids))
        if body.stream:
            chunks = ChatChunks(
                response_id, int(time.time()), record.model, null_usage=_wants_usage(body)
            )
            encoder = ChatStream(body, chunks, texts, job.prompt.token_ids)
            return EventStream(
                generation,
                encoder,
                timeout_s=ctx.config.request_timeout,
                max_bytes=ctx.config.max_stream_bytes,
            )
        collector = Collector(job.params.n)
        await run_to_end(
            generation, request, ctx.config.request_timeout, lambda _, out: collector.add(out)
        )
        answer = chat_completion(body, job, collector, texts, response_id, record.model)
        return Response(msgspec.json.encode(answer), media_type="application/json")


def chat_completion(
    body: ChatRequest,
    job: Job,
    collector: Collector,
    texts: TokenTexts,
    response_id: str,
    model: str,
) -> ChatCompletion:
    prompt_tokens = len(job.prompt.token_ids)
    usage = make_usage(prompt_tokens, collector.completion_tokens, collector.num_cached_tokens)
    prompt_lps = prompt_logprobs(collector.prompt_logprobs, texts)
    return ChatCompletion(
        id=response_id,
        created=int(time.time()),
        model=model,
        choices=[_choice(body, choice, texts) for choice in collector.choices],
        usage=usage,
        prompt_logprobs=UNSET if prompt_lps is None else prompt_lps,
        prompt_token_ids=job.prompt.token_ids if body.return_token_ids else UNSET,
    )


def _choice(body: ChatRequest, choice: Collected, texts: TokenTexts) -> ChatChoice:
    logprobs = None
    if choice.logprobs is not None:
        top = body.top_logprobs or 0
        entries = chat_logprobs(choice.token_ids, choice.logprobs, top, texts)
        logprobs = ChoiceLogprobs(content=entries)
    return ChatChoice(
        index=choice.index,
        message=AssistantMessage(content=choice.text),
        logprobs=logprobs,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        token_ids=choice.token_ids if body.return_token_ids else UNSET,
    )


def _wants_usage(body: ChatRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage

"""POST /v1/completions."""

from __future__ import annotations

import time

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from dlcore.serve.collect import Collector
from dlcore.serve.completion_choice import ChoiceBuilder
from dlcore.serve.completion_jobs import completion_jobs
from dlcore.serve.completion_stream import CompletionStream
from dlcore.serve.context import ServerContext
from dlcore.serve.endpoint import json_body, json_response, stream_response
from dlcore.serve.generation import Generation, Job, run_to_end
from dlcore.serve.handover import handed_over, ticket_stream, with_handover
from dlcore.serve.logprobs import TokenTexts, prompt_logprobs
from dlcore.serve.record import new_id, record_of, safe_id
from dlcore.serve.schemas.common import make_usage
from dlcore.serve.schemas.completions import Completion, CompletionChoice, CompletionRequest


class CompletionEndpoint:
    def __init__(self, ctx: ServerContext) -> None:
        self._ctx = ctx

    async def create(self, request: Request) -> Response:
        body = await json_body(self._ctx, request, CompletionRequest)
        return await self.answer(request, body)

    async def answer(self, request: Request, body: CompletionRequest) -> Response:
        ctx, record = self._ctx, record_of(request)
        record.model = ctx.resolve_model(body.model)
        record.stream = bool(body.stream)
        jobs = with_handover(ctx, body, await completion_jobs(ctx, body))
        generation = Generation(ctx.engine, ctx.metrics, record, jobs)
        response_id = f"cmpl-{safe_id(body.request_id) or new_id()}"
        texts = TokenTexts(ctx.engine.tokenizer, bool(body.return_tokens_as_token_ids))
        if (tickets := ticket_stream(ctx, body, generation)) is not None:
            return tickets
        if body.stream:
            encoder = CompletionStream(
                body,
                jobs,
                texts,
                response_id=response_id,
                created=int(time.time()),
                model=record.model,
            )
            return stream_response(ctx, generation, encoder)
        collectors = [Collector(job.params.n) for job in jobs]
        await run_to_end(
            generation, request, ctx.config.request_timeout, lambda i, out: collectors[i].add(out)
        )
        answer = completion(body, jobs, collectors, texts, response_id, record.model)
        answer.kv_transfer_params = handed_over(ctx, jobs[0], collectors[0])
        return json_response(answer)


def completion(
    body: CompletionRequest,
    jobs: list[Job],
    collectors: list[Collector],
    texts: TokenTexts,
    response_id: str,
    model: str,
) -> Completion:
    prompt_tokens = sum(len(job.prompt.token_ids) for job in jobs)
    completion_tokens = sum(c.completion_tokens for c in collectors)
    cached = sum(c.num_cached_tokens for c in collectors)
    choices: list[CompletionChoice] = []
    for job, collector in zip(jobs, collectors, strict=True):
        choices += _choices(body, job, collector, texts, first_index=len(choices))
    return Completion(
        id=response_id,
        created=int(time.time()),
        model=model,
        choices=choices,
        usage=make_usage(prompt_tokens, completion_tokens, cached),
    )


def _choices(
    body: CompletionRequest, job: Job, collector: Collector, texts: TokenTexts, first_index: int
) -> list[CompletionChoice]:
    choices = []
    for collected in collector.choices:
        builder = ChoiceBuilder(body, job, first_index + collected.index, texts)
        choice = builder.build(collected, collector.prompt_logprobs)
        if body.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(collector.prompt_logprobs, texts) or UNSET
        choices.append(choice)
    return choices

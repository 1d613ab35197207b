"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from dlcore.serve.anthropic_request import to_chat_request
from dlcore.serve.anthropic_run import MessageRun
from dlcore.serve.chat_job import chat_call, chat_prompt_of
from dlcore.serve.context import ServerContext
from dlcore.serve.endpoint import json_body, json_response, stream_response
from dlcore.serve.generation import Generation, run_to_end
from dlcore.serve.record import record_of
from dlcore.serve.schemas.anthropic import CountTokensRequest, MessagesRequest, TokenCount


class MessagesEndpoint:
    def __init__(self, ctx: ServerContext) -> None:
        self._ctx = ctx

    async def create(self, request: Request) -> Response:
        ctx, record = self._ctx, record_of(request)
        body = await json_body(ctx, request, MessagesRequest)
        record.model = ctx.resolve_model(body.model)
        record.stream = bool(body.stream)
        call = await chat_call(ctx, to_chat_request(body))
        generation = Generation(ctx.engine, ctx.metrics, record, [call.job])
        run = MessageRun(call, record.model, bool(body.return_token_ids))
        if body.stream:
            return stream_response(ctx, generation, run)
        await run_to_end(generation, request, ctx.config.request_timeout, run.on_output)
        return json_response(run.render())

    async def count_tokens(self, request: Request) -> Response:
        body = await json_body(self._ctx, request, CountTokensRequest)
        self._ctx.resolve_model(body.model)
        prompt = await chat_prompt_of(self._ctx, to_chat_request(body))
        return json_response(TokenCount(input_tokens=len(prompt.token_ids)))

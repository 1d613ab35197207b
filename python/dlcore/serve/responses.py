"""/v1/responses: create (plain, streamed, in the background), retrieve, cancel, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dlcore.sampling_params import ParameterError
from dlcore.serve.chat_job import ChatCall, chat_call
from dlcore.serve.context import ServerContext
from dlcore.serve.endpoint import json_body, json_response, stream_response
from dlcore.serve.errors import ApiError, bad_request, to_api_error
from dlcore.serve.generation import Generation, run_to_end
from dlcore.serve.logprobs import TokenTexts
from dlcore.serve.record import new_id, record_of
from dlcore.serve.response_homes import PassedOn
from dlcore.serve.responses_items import as_message
from dlcore.serve.responses_request import FIELDS_OF_CHAT, input_messages, to_chat_request
from dlcore.serve.responses_run import ResponseRun
from dlcore.serve.responses_store import ResponseStore
from dlcore.serve.schemas.chat import Message
from dlcore.serve.schemas.responses import ResponsesRequest

_MAX_STORED_CHARS = 64 * 1024 * 1024


class ResponsesEndpoint:
    def __init__(self, ctx: ServerContext) -> None:
        self._ctx = ctx
        self._store = ResponseStore(ctx.config.max_stored_responses, _MAX_STORED_CHARS)
        self._background: set[asyncio.Task[None]] = set()

    async def create(self, request: Request) -> Response:
        ctx, record = self._ctx, record_of(request)
        body = await json_body(ctx, request, ResponsesRequest)
        record.model = ctx.resolve_model(body.model)
        record.stream = bool(body.stream)
        _check(body)
        if home := self._elsewhere(body.previous_response_id):
            return PassedOn(home, request, msgspec.json.encode(body))
        history = self._history(body, record.key_name)
        call = await self._call(body, history)
        generation = Generation(ctx.engine, ctx.metrics, record, [call.job])
        texts, response_id = TokenTexts(ctx.engine.tokenizer), self._new_id()
        run = ResponseRun(body, call, generation, texts, record.model, response_id)
        if body.store is not False:
            self._store.put(run, record.key_name, [*history, *input_messages(body.input)])
        if body.background:
            task = asyncio.create_task(self._run_in_background(run))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
            return json_response(run.render())
        if body.stream:
            return stream_response(ctx, generation, run)
        try:
            await run_to_end(generation, request, ctx.config.request_timeout, run.on_output)
        except Exception as exc:
            run.fail(to_api_error(exc))
            raise
        return json_response(run.render())

    async def _call(self, body: ResponsesRequest, history: Sequence[Message]) -> ChatCall:
        """Raises ApiError, which names this API's fields."""
        try:
            return await chat_call(self._ctx, to_chat_request(body, history))
        except (ApiError, ParameterError) as exc:
            raise to_api_error(exc).renamed(FIELDS_OF_CHAT) from None

    async def retrieve(self, request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            raise bad_request("stream: a stored response is not streamed again", "stream")
        if home := self._elsewhere(request.path_params["response_id"]):
            return PassedOn(home, request)
        return json_response(self._stored(request).render())

    async def cancel(self, request: Request) -> Response:
        if home := self._elsewhere(request.path_params["response_id"]):
            return PassedOn(home, request)
        run = self._stored(request)
        if not run.request.background:
            raise bad_request("response_id: only background responses are cancelled", "response_id")
        run.cancel()
        await run.generation.abort()
        return json_response(run.render())

    async def delete(self, request: Request) -> Response:
        if home := self._elsewhere(request.path_params["response_id"]):
            return PassedOn(home, request)
        run = self._stored(request)
        self._store.delete(run.id, record_of(request).key_name)
        await run.generation.abort()
        return json_response({"id": run.id, "object": "response", "deleted": True})

    def _new_id(self) -> str:
        homes = self._ctx.homes
        return f"resp_{new_id()}" if homes is None else homes.new_id()

    def _elsewhere(self, response_id: str | None) -> Path | None:
        homes = self._ctx.homes
        return None if homes is None or response_id is None else homes.elsewhere(response_id)

    def _stored(self, request: Request) -> ResponseRun:
        owner = record_of(request).key_name
        return self._store.get(request.path_params["response_id"], owner, "response_id").run

    def _history(self, body: ResponsesRequest, owner: str) -> list[Message]:
        if body.previous_response_id is None:
            return []
        param = "previous_response_id"
        stored = self._store.get(body.previous_response_id, owner, param)
        if not stored.run.ended:
            raise bad_request(f"{param}: that response is still being written", param)
        return [*stored.history, as_message(stored.run.items.items)]

    async def _run_in_background(self, run: ResponseRun) -> None:
        self._ctx.drain.enter()
        timeout = self._ctx.config.request_timeout or None
        try:
            await asyncio.wait_for(_consume(run), timeout)
        except Exception as exc:
            run.fail(to_api_error(exc))
        finally:
            self._ctx.drain.leave()


async def _consume(run: ResponseRun) -> None:
    async with aclosing(run.generation.outputs()) as outputs:
        async for index, output in outputs:
            run.on_output(index, output)


def _check(body: ResponsesRequest) -> None:
    if body.background and body.stream:
        raise bad_request("stream: not with background", "stream")
    if body.background and body.store is False:
        raise bad_request("store: a background response must be stored", "store")

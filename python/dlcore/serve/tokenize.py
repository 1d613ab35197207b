"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from dlcore.serve.chat_job import chat_prompt_of
from dlcore.serve.context import ServerContext
from dlcore.serve.endpoint import json_body, json_response
from dlcore.serve.errors import bad_request
from dlcore.serve.logprobs import TokenTexts
from dlcore.serve.prompt import Prompt, check_token_ids, from_text, need_tokenizer
from dlcore.serve.schemas.chat import ChatRequest
from dlcore.serve.schemas.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)

_INLINE_TOKENS = 4096


class TokenizeEndpoint:
    def __init__(self, ctx: ServerContext) -> None:
        self._ctx = ctx

    async def tokenize(self, request: Request) -> Response:
        engine = self._ctx.engine
        body = await json_body(self._ctx, request, TokenizeRequest)
        self._ctx.resolve_model(body.model)
        prompt = await self._prompt(body)
        names: list[str] | UnsetType = UNSET
        if body.return_token_strs:
            texts = TokenTexts(engine.tokenizer)
            names = [texts.name(token_id) for token_id in prompt.token_ids]
        answer = TokenizeResponse(
            count=len(prompt.token_ids),
            max_model_len=engine.max_model_len,
            tokens=prompt.token_ids,
            token_strs=names,
        )
        return json_response(answer)

    async def detokenize(self, request: Request) -> Response:
        body = await json_body(self._ctx, request, DetokenizeRequest)
        self._ctx.resolve_model(body.model)
        tokenizer = need_tokenizer(self._ctx.engine, "tokens")
        check_token_ids(self._ctx.engine, body.tokens, "tokens")
        if len(body.tokens) <= _INLINE_TOKENS:
            text = tokenizer.decode(body.tokens, skip_special_tokens=False)
        else:
            text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special_tokens=False)
        return json_response(DetokenizeResponse(prompt=text))

    async def _prompt(self, body: TokenizeRequest) -> Prompt:
        if (body.prompt is None) == (body.messages is None):
            raise bad_request("prompt: give either prompt or messages", "prompt")
        if body.messages is None:
            special = body.add_special_tokens is not False
            return await from_text(self._ctx.engine, body.prompt or "", add_special_tokens=special)
        chat = ChatRequest(
            messages=body.messages,
            tools=body.tools,
            add_special_tokens=body.add_special_tokens,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            chat_template_kwargs=body.chat_template_kwargs,
        )
        return await chat_prompt_of(self._ctx, chat)

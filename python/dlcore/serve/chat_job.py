"""A chat request -> the engine job that answers it."""

from __future__ import annotations

from dlcore.serve.chat_prompt import chat_prompt
from dlcore.serve.context import ServerContext
from dlcore.serve.errors import bad_request
from dlcore.serve.generation import Job
from dlcore.serve.prompt import from_chat, truncated
from dlcore.serve.sampling import room_for_output, sampling_params
from dlcore.serve.schemas.chat import ChatRequest


async def chat_job(ctx: ServerContext, request: ChatRequest) -> Job:
    """Raises ApiError or ParameterError for a request that cannot be served."""
    check_chat(ctx, request)
    engine = ctx.engine
    asked, asked_name = _asked_tokens(request)
    prompt = await from_chat(engine, chat_prompt(request))
    prompt = truncated(prompt, request.truncate_prompt_tokens, engine.max_model_len, asked or 1)
    max_tokens = room_for_output(
        len(prompt.token_ids),
        asked,
        engine.max_model_len,
        ctx.config.max_output_tokens,
        asked_name,
        "messages",
    )
    params = sampling_params(
        request,
        engine,
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
    )
    return Job(
        prompt=prompt,
        params=params,
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
    )


def check_chat(ctx: ServerContext, request: ChatRequest) -> None:
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs: needs logprobs to be true", "top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options: only when stream is true", "stream_options")
    if request.prompt_logprobs is not None and request.stream:
        raise bad_request("prompt_logprobs: not with stream", "prompt_logprobs")
    if request.chat_template is not None and not ctx.config.trust_request_chat_template:
        raise bad_request(
            "chat_template: this server does not take templates from clients "
            "(--trust-request-chat-template)",
            "chat_template",
        )


def _asked_tokens(request: ChatRequest) -> tuple[int | None, str]:
    if request.max_completion_tokens is not None:
        return request.max_completion_tokens, "max_completion_tokens"
    return request.max_tokens, "max_tokens"

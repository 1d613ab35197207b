"""A chat request -> the engine job that answers it, and how to read the answer.

The Responses and Messages APIs are written as chat requests and come through here too.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlcore.chat_template import ChatTemplate, ChatTemplateError
from dlcore.serve.answer import AnswerReader, answer_reader
from dlcore.serve.chat_prompt import chat_prompt
from dlcore.serve.constraints import chat_constraint, check_tools
from dlcore.serve.context import ServerContext, chat_template_of
from dlcore.serve.errors import bad_request
from dlcore.serve.generation import Job
from dlcore.serve.prompt import Prompt, from_chat, truncated
from dlcore.serve.resume import resume_of_jobs
from dlcore.serve.sampling import room_for_output, sampling_params
from dlcore.serve.schemas.chat import ChatRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """A checked request, ready to run. `echo`: text to show before the answer."""

    request: ChatRequest
    job: Job
    reader: AnswerReader
    echo: str = ""


async def chat_call(ctx: ServerContext, request: ChatRequest) -> ChatCall:
    """Raises ApiError or ParameterError for a request that cannot be served."""
    check_chat(ctx, request)
    engine = ctx.engine
    chat = chat_prompt(request)
    asked, asked_name = _asked_tokens(request)
    prompt = await from_chat(engine, chat, template=_template(ctx, request))
    reader = answer_reader(ctx.answer_format, request, prompt.text or "")
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
        structured_outputs=reader.after_reasoning(chat_constraint(request)),
        keep_special_tokens=not reader.skip_special_tokens,
    )
    job = Job(
        prompt=prompt,
        params=params,
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        resume_token_ids=resume_of_jobs(request, 1)[0],
    )
    echo = chat.messages[-1]["content"] if request.echo and chat.continue_final_message else ""
    return ChatCall(request=request, job=job, reader=reader, echo=echo)


async def chat_prompt_of(ctx: ServerContext, request: ChatRequest) -> Prompt:
    """The prompt alone, whole. Raises ApiError 400."""
    check_chat(ctx, request)
    return await from_chat(ctx.engine, chat_prompt(request), template=_template(ctx, request))


def check_chat(ctx: ServerContext, request: ChatRequest) -> None:
    check_tools(request)
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


def _template(ctx: ServerContext, request: ChatRequest) -> ChatTemplate | None:
    if request.chat_template is None:
        return ctx.chat_template
    try:
        return chat_template_of(request.chat_template, ctx.engine.tokenizer)
    except ChatTemplateError as exc:
        raise bad_request(f"chat_template: {exc}", "chat_template") from None


def _asked_tokens(request: ChatRequest) -> tuple[int | None, str]:
    if request.max_completion_tokens is not None:
        return request.max_completion_tokens, "max_completion_tokens"
    return request.max_tokens, "max_tokens"

"""A completion request -> one engine job per prompt."""

from __future__ import annotations

from typing import TypeGuard

from dlcore.engine_client import EngineClient
from dlcore.resumption import ResumeTokenIds
from dlcore.serve.constraints import constraint_of
from dlcore.serve.context import ServerContext
from dlcore.serve.errors import bad_request
from dlcore.serve.generation import Job
from dlcore.serve.prompt import Prompt, from_text, from_token_ids, truncated
from dlcore.serve.resume import resume_of_jobs
from dlcore.serve.sampling import room_for_output, sampling_params
from dlcore.serve.schemas.completions import CompletionRequest


async def completion_jobs(ctx: ServerContext, request: CompletionRequest) -> list[Job]:
    """Raises ApiError or ParameterError for a request that cannot be served."""
    _check(request)
    prompts = await _prompts(ctx.engine, request, ctx.config.max_prompts_per_request)
    resume = resume_of_jobs(request, len(prompts))
    return [_job(ctx, request, *each) for each in zip(prompts, resume, strict=True)]


def _check(request: CompletionRequest) -> None:
    if request.suffix:
        raise bad_request(
            "suffix: this model does not fill in the middle; send only a prompt", "suffix"
        )
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options: only when stream is true", "stream_options")
    if request.prompt_logprobs is not None and request.stream:
        raise bad_request("prompt_logprobs: not with stream", "prompt_logprobs")
    if request.max_tokens == 0 and not request.echo:
        raise bad_request("max_tokens: must be at least 1 unless echo is true", "max_tokens")


async def _prompts(engine: EngineClient, request: CompletionRequest, limit: int) -> list[Prompt]:
    given = request.prompt
    special = request.add_special_tokens is not False
    if isinstance(given, str):
        return [await from_text(engine, given, add_special_tokens=special)]
    if _all_ints(given):
        return [from_token_ids(engine, given)]
    if len(given) > limit:
        raise bad_request(f"prompt: {len(given)} prompts, at most {limit} are taken", "prompt")
    prompts = []
    for i, item in enumerate(given):
        if isinstance(item, str):
            where = f"prompt[{i}]"
            prompt = await from_text(engine, item, add_special_tokens=special, param=where)
        elif isinstance(item, list):
            prompt = from_token_ids(engine, item, f"prompt[{i}]")
        else:
            raise bad_request("prompt: token ids and texts cannot be mixed", "prompt")
        prompts.append(prompt)
    if not prompts:
        raise bad_request("prompt: must not be empty", "prompt")
    return prompts


def _all_ints(given: list[str | int | list[int]]) -> TypeGuard[list[int]]:
    return bool(given) and all(type(item) is int for item in given)


def _job(
    ctx: ServerContext, request: CompletionRequest, prompt: Prompt, resume: ResumeTokenIds | None
) -> Job:
    engine = ctx.engine
    asked = None if request.max_tokens is None else max(1, request.max_tokens)
    limit = request.truncate_prompt_tokens
    prompt = truncated(prompt, limit, engine.max_model_len, asked or 1)
    if not prompt.token_ids:
        raise bad_request("prompt: the prompt has no tokens", "prompt")
    max_tokens = room_for_output(
        len(prompt.token_ids),
        asked,
        engine.max_model_len,
        ctx.config.max_output_tokens,
        "max_tokens",
        "prompt",
    )
    params = sampling_params(
        request,
        engine,
        max_tokens=max_tokens,
        logprobs=request.logprobs,
        prompt_logprobs=_prompt_logprobs(request),
        structured_outputs=constraint_of(request),
    )
    return Job(
        prompt=prompt,
        params=params,
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        resume_token_ids=resume,
    )


def _prompt_logprobs(request: CompletionRequest) -> int | None:
    # An echoed prompt shows its log-probabilities too.
    return (
        request.logprobs
        if request.echo and request.logprobs is not None
        else (request.prompt_logprobs)
    )

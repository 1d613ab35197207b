"""Request fields -> SamplingParams, and the length rules of a request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dlcore.engine_client import EngineClient
from dlcore.sampling_params import ParameterError, SamplingParams, StructuredOutputs
from dlcore.serve.schemas.common import SamplingFields

# Fields whose name and meaning SamplingParams shares; null means its default.
_SAME_NAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "min_tokens",
    "ignore_eos",
    "allowed_token_ids",
    "bad_words",
    "skip_special_tokens",
)


def sampling_params(
    fields: SamplingFields,
    engine: EngineClient,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    structured_outputs: StructuredOutputs | None = None,
    keep_special_tokens: bool = False,
) -> SamplingParams:
    """What the request leaves open is as the model's authors advise.

    Raises ParameterError naming the field.
    """
    given = {name: getattr(fields, name) for name in _SAME_NAME}
    if keep_special_tokens:
        given["skip_special_tokens"] = False
    _check_token_ids("allowed_token_ids", fields.allowed_token_ids or (), engine.vocab_size)
    return replace(
        engine.default_sampling_params(),
        **{name: value for name, value in given.items() if value is not None},
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        logit_bias=_logit_bias(fields.logit_bias, engine.vocab_size),
        detokenize=engine.tokenizer is not None,
        structured_outputs=structured_outputs,
    )


def _logit_bias(given: dict[str, float] | None, vocab_size: int) -> dict[int, float] | None:
    if not given:
        return None
    try:
        bias = {int(key): value for key, value in given.items()}
    except ValueError:
        raise ParameterError("logit_bias", "keys must be token ids") from None
    _check_token_ids("logit_bias", bias, vocab_size)
    return bias


def _check_token_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise ParameterError(
                name, f"token id {token_id} is outside the vocabulary of {vocab_size}"
            )


def room_for_output(
    prompt_len: int,
    asked: int | None,
    max_model_len: int,
    cap: int,
    param: str,
    prompt_param: str,
) -> int:
    """How many tokens the request may generate, `cap` (0 = none) being the server's limit.

    Raises ParameterError with the numbers.
    """
    room = max_model_len - prompt_len
    if room < 1:
        raise ParameterError(
            prompt_param,
            f"the prompt has {prompt_len} tokens, and this model's maximum context length is "
            f"{max_model_len} tokens, prompt and completion together",
        )
    if asked is None:
        return min(room, cap) if cap else room
    if asked > room:
        raise ParameterError(
            param,
            f"{asked} is too large: this model's maximum context length is {max_model_len} "
            f"tokens and the prompt has {prompt_len} ({asked} > {max_model_len} - {prompt_len})",
        )
    if cap and asked > cap:
        raise ParameterError(param, f"{asked} is too large: this server allows {cap}")
    return asked

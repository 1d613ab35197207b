"""Between dlcore.v1 messages and dlcore's own objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dlcore.outputs import CompletionOutput, LogprobsAtPosition, RequestOutput
from dlcore.sampling_params import ParameterError, SamplingParams, StructuredOutputs
from dlcore.v1 import engine_pb2 as pb

FINISH_REASONS: Mapping[str | None, pb.FinishReason] = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "abort": pb.FINISH_REASON_ABORT,
    "error": pb.FINISH_REASON_ERROR,
}

# Fields that carry presence: set ones replace SamplingParams' defaults.
_OPTIONAL = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "logprobs",
    "prompt_logprobs",
    "skip_special_tokens",
    "detokenize",
)
_REPEATED = ("stop", "stop_token_ids", "allowed_token_ids", "bad_words")


def prompt_of(request: pb.GenerateRequest) -> str | list[int]:
    """The prompt as text or token ids. Raises ParameterError when neither is set."""
    match request.WhichOneof("prompt"):
        case "text":
            return request.text
        case "token_ids":
            return list(request.token_ids.ids)
        case _:
            raise ParameterError("prompt", "set either text or token_ids")


def sampling_params_of(
    message: pb.SamplingParams, defaults: SamplingParams, max_output_tokens: int
) -> SamplingParams:
    """What the message leaves unset is as in `defaults`; `max_output_tokens` 0 = no cap.

    Raises ParameterError naming the field that is out of range.
    """
    values: dict[str, Any] = {
        name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)
    }
    values |= {name: tuple(given) for name in _REPEATED if (given := getattr(message, name))}
    return replace(
        defaults,
        **values,
        max_tokens=_max_tokens(message.max_tokens, max_output_tokens),
        include_stop_str_in_output=message.include_stop_str_in_output,
        ignore_eos=message.ignore_eos,
        logit_bias=dict(message.logit_bias) or None,
        structured_outputs=_structured_outputs_of(message.structured_outputs),
    )


def _max_tokens(asked: int, cap: int) -> int | None:
    if cap and asked > cap:
        raise ParameterError("max_tokens", f"{asked} is too large: this server allows {cap}")
    return asked or cap or None


def _structured_outputs_of(message: pb.StructuredOutputs) -> StructuredOutputs | None:
    kind = message.WhichOneof("constraint")
    if kind is None:
        return None
    if kind == "choice":
        return StructuredOutputs(choice=tuple(message.choice.values))
    return StructuredOutputs(**{kind: getattr(message, kind)})


def response_of(output: RequestOutput, request_id: str, *, first: bool) -> pb.GenerateResponse:
    """One streamed message; prompt logprobs go with the first alone."""
    response = pb.GenerateResponse(
        request_id=request_id,
        outputs=[_delta_of(completion) for completion in output.outputs],
        finished=output.finished,
        num_prompt_tokens=len(output.prompt_token_ids),
        num_cached_tokens=output.num_cached_tokens,
        error=output.error or "",
    )
    if first and output.prompt_logprobs is not None:
        response.prompt_logprobs.extend(_position_of(p or {}) for p in output.prompt_logprobs)
    return response


def _delta_of(completion: CompletionOutput) -> pb.CompletionDelta:
    delta = pb.CompletionDelta(
        index=completion.index,
        text=completion.text,
        token_ids=completion.token_ids,
        finish_reason=FINISH_REASONS[completion.finish_reason],
    )
    if isinstance(completion.stop_reason, str):
        delta.stop_string = completion.stop_reason
    elif completion.stop_reason is not None:
        delta.stop_token_id = completion.stop_reason
    if completion.logprobs is not None:
        delta.logprobs.extend(_position_of(position) for position in completion.logprobs)
    return delta


def _position_of(position: LogprobsAtPosition) -> pb.PositionLogprobs:
    return pb.PositionLogprobs(
        candidates=[
            pb.TokenLogprob(
                token_id=token_id,
                logprob=candidate.logprob,
                rank=candidate.rank or 0,
                decoded_token=candidate.decoded_token or "",
            )
            for token_id, candidate in position.items()
        ]
    )

"""What both clients share: building requests, reading responses, naming errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from dlcore.engine_client import EngineDeadError, QueueFullError
from dlcore.outputs import CompletionOutput, Logprob, LogprobsAtPosition, RequestOutput
from dlcore.sampling_params import ParameterError, SamplingParams, StructuredOutputs
from dlcore.v1 import engine_pb2 as pb

_FINISH_NAMES: dict[int, str | None] = {
    code: name.removeprefix("FINISH_REASON_").lower() for name, code in pb.FinishReason.items()
} | {pb.FINISH_REASON_UNSPECIFIED: None}
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
    "max_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "logprobs",
    "prompt_logprobs",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "skip_special_tokens",
    "detokenize",
)


def metadata(api_key: str | None) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {api_key}")] if api_key else []


def channel_credentials(
    root_certificates: bytes, client_certificate: bytes | None, client_key: bytes | None
) -> grpc.ChannelCredentials:
    """PEM; the client's own pair for servers run with --ssl-ca-certs."""
    return grpc.ssl_channel_credentials(root_certificates, client_key, client_certificate)


def generate_request(
    prompt: str | Sequence[int],
    params: SamplingParams | None,
    request_id: str,
    priority: int,
    cache_salt: str,
) -> pb.GenerateRequest:
    request = pb.GenerateRequest(
        request_id=request_id,
        priority=priority,
        cache_salt=cache_salt,
    )
    if params is not None:
        request.sampling_params.CopyFrom(_params_message(params))
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(prompt)
    return request


def _params_message(params: SamplingParams) -> pb.SamplingParams:
    values: dict[str, Any] = {}
    for name in _SAME_NAME:
        value = getattr(params, name)
        if value is not None:
            values[name] = value
    message = pb.SamplingParams(**values)
    if params.structured_outputs is not None:
        message.structured_outputs.CopyFrom(_structured_message(params.structured_outputs))
    return message


def _structured_message(structured: StructuredOutputs) -> pb.StructuredOutputs:
    if structured.choice is not None:
        return pb.StructuredOutputs(choice=pb.Choices(values=structured.choice))
    message = pb.StructuredOutputs(json_object=True) if structured.json_object else None
    for name in ("json_schema", "regex", "grammar", "structural_tag"):
        value = getattr(structured, name)
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            message = pb.StructuredOutputs()
            setattr(message, name, text)
    return message or pb.StructuredOutputs()


def request_output(response: pb.GenerateResponse) -> RequestOutput:
    """One delta, as AsyncLLM.generate yields them (the prompt itself is not echoed)."""
    prompt_logprobs: list[LogprobsAtPosition | None] | None = None
    if response.prompt_logprobs:
        prompt_logprobs = [_position(p) or None for p in response.prompt_logprobs]
    return RequestOutput(
        request_id=response.request_id,
        prompt=None,
        prompt_token_ids=[],
        outputs=[_completion(delta) for delta in response.outputs],
        finished=response.finished,
        prompt_logprobs=prompt_logprobs,
        num_cached_tokens=response.num_cached_tokens,
        error=response.error or None,
    )


def _completion(delta: pb.CompletionDelta) -> CompletionOutput:
    kind = delta.WhichOneof("stop_reason")
    return CompletionOutput(
        index=delta.index,
        text=delta.text,
        token_ids=list(delta.token_ids),
        logprobs=[_position(p) for p in delta.logprobs] if delta.logprobs else None,
        finish_reason=_FINISH_NAMES[delta.finish_reason],
        stop_reason=getattr(delta, kind) if kind else None,
    )


def _position(position: pb.PositionLogprobs) -> LogprobsAtPosition:
    return {
        c.token_id: Logprob(c.logprob, c.rank or None, c.decoded_token or None)
        for c in position.candidates
    }


def collect(deltas: Iterable[RequestOutput], prompt: str | Sequence[int]) -> RequestOutput:
    """Joins a stream's deltas into the whole result."""
    joined = RequestOutput("", None, [], [], False)
    if isinstance(prompt, str):
        joined.prompt = prompt
    else:
        joined.prompt_token_ids = list(prompt)
    completions: dict[int, CompletionOutput] = {}
    for delta in deltas:
        joined.request_id = delta.request_id
        joined.finished = delta.finished
        joined.num_cached_tokens = max(joined.num_cached_tokens, delta.num_cached_tokens)
        joined.prompt_logprobs = joined.prompt_logprobs or delta.prompt_logprobs
        joined.error = joined.error or delta.error
        for part in delta.outputs:
            _extend(completions.setdefault(part.index, CompletionOutput(part.index)), part)
    joined.outputs = [completions[index] for index in sorted(completions)]
    return joined


def _extend(whole: CompletionOutput, part: CompletionOutput) -> None:
    whole.text += part.text
    whole.token_ids += part.token_ids
    if part.logprobs is not None:
        whole.logprobs = (whole.logprobs or []) + part.logprobs
    whole.finish_reason = part.finish_reason or whole.finish_reason
    if part.stop_reason is not None:
        whole.stop_reason = part.stop_reason


def translate(error: Any) -> Exception:
    """The exception an in-process engine would have raised for this grpc.RpcError."""
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        param, _, message = details.partition(": ")
        return ParameterError(param, message)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return QueueFullError(details)
    if code == grpc.StatusCode.UNAVAILABLE:
        return EngineDeadError(details)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return PermissionError(details)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimeoutError(details)
    return RuntimeError(f"{code.name}: {details}")

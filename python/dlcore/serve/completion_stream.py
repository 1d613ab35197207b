"""A streamed text completion: engine outputs in, SSE bytes out."""

from __future__ import annotations

import msgspec

from dlcore.outputs import CompletionOutput, RequestOutput
from dlcore.serve.completion_choice import ChoiceBuilder, PromptLogprobs
from dlcore.serve.errors import ApiError
from dlcore.serve.generation import Job
from dlcore.serve.logprobs import TokenTexts
from dlcore.serve.schemas.common import Usage, make_usage
from dlcore.serve.schemas.completions import CompletionRequest
from dlcore.serve.sse import DONE

_encode = msgspec.json.encode


class CompletionStream:
    """The StreamEncoder of /v1/completions. Choice index = prompt * n + completion."""

    def __init__(
        self,
        request: CompletionRequest,
        jobs: list[Job],
        texts: TokenTexts,
        *,
        response_id: str,
        created: int,
        model: str,
    ) -> None:
        options = request.stream_options
        self._request = request
        self._jobs = jobs
        self._n = request.n or 1
        self._include_usage = options is not None and options.include_usage
        self._usage_in_each = options is not None and options.continuous_usage_stats
        self._builders = [
            ChoiceBuilder(request, job, i * self._n + k, texts)
            for i, job in enumerate(jobs)
            for k in range(self._n)
        ]
        head = {"id": response_id, "object": "text_completion", "created": created}
        self._head = b"data: " + _encode({**head, "model": model})[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"
        self._text_tail = b',"logprobs":null,"finish_reason":null,"stop_reason":null}' + self._tail
        self._text_heads = [self._head + b'{"index":%d,"text":' % b.index for b in self._builders]
        self._plain = not (
            request.echo
            or request.logprobs is not None
            or request.return_token_ids
            or self._usage_in_each
        )
        self._completion_tokens = 0
        self._prompt_logprobs: list[PromptLogprobs] = [None] * len(jobs)
        self._cached = [0] * len(jobs)

    def on_start(self) -> bytes:
        return b""

    def on_output(self, job: int, output: RequestOutput) -> bytes:
        self._cached[job] = output.num_cached_tokens
        if output.prompt_logprobs is not None:
            earlier = self._prompt_logprobs[job] or []
            self._prompt_logprobs[job] = earlier + output.prompt_logprobs
        return b"".join([self._choice(job, out) for out in output.outputs])

    def on_end(self) -> bytes:
        if not self._include_usage:
            return DONE
        return self._head + b'],"usage":' + _encode(self._usage()) + b"}\n\n" + DONE

    def on_error(self, error: ApiError) -> bytes:
        return b"data: " + _encode(error.openai()) + b"\n\n" + DONE

    def _choice(self, job: int, out: CompletionOutput) -> bytes:
        self._completion_tokens += len(out.token_ids)
        index = job * self._n + out.index
        if self._plain and out.finish_reason is None:
            if not out.text:
                return b""
            return self._text_heads[index] + _encode(out.text) + self._text_tail
        if not (out.text or out.finish_reason or out.token_ids):
            return b""
        choice = _encode(self._builders[index].build(out, self._prompt_logprobs[job]))
        if self._usage_in_each:
            return self._head + choice + b'],"usage":' + _encode(self._usage()) + b"}\n\n"
        return self._head + choice + self._tail

    def _usage(self) -> Usage:
        prompt_tokens = sum(len(job.prompt.token_ids) for job in self._jobs)
        return make_usage(prompt_tokens, self._completion_tokens, sum(self._cached))

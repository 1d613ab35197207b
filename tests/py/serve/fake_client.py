"""An EngineClient without a model: deterministic tokens, so that a test knows every answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from dlcore.chat_template import ChatTemplate
from dlcore.engine_client import EngineDeadError, QueueFullError
from dlcore.outputs import CompletionOutput, Logprob, LogprobsAtPosition, RequestOutput
from dlcore.resumption import ResumeTokenIds
from dlcore.sampling_params import SamplingParams
from dlcore.tokenizer import Tokenizer

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
DEFAULT_REPLY = "The answer to your question is forty-two, and here is why. "


def byte_tokenizer() -> Tokenizer:
    """One token per UTF-8 byte, and the chat markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    template = ChatTemplate.from_sources({"default": TEMPLATE}, {})
    end = backend.token_to_id("<|im_end|>")
    return Tokenizer(backend, chat_template=template, eos_token_ids=[end])


class FakeEngine:
    """Answers every prompt with `reply` (or `script`), one word a step, `delay` seconds apart.

    Implements EngineClient. `running` and `aborted` show what the server did to it.
    """

    model_name = "fake"
    kv_peer = None

    def __init__(
        self,
        *,
        reply: Callable[[str], str] | str = DEFAULT_REPLY * 8,
        script: Callable[[str, SamplingParams], str] | None = None,
        delay: float = 0.0,
        max_model_len: int = 4096,
        max_waiting: int = 0,
        tokenizer: Tokenizer | None = None,
        tokens_only: bool = False,
    ) -> None:
        self.max_model_len = max_model_len
        self.tokenizer = None if tokens_only else tokenizer or byte_tokenizer()
        self.vocab_size = 258
        self.running: dict[str, asyncio.Event] = {}
        # The latest only: long runs watch the server's memory, not this one's.
        self.aborted: deque[str] = deque(maxlen=2000)
        self.seen: deque[tuple[list[int], SamplingParams]] = deque(maxlen=2000)
        self.priorities: deque[int] = deque(maxlen=2000)
        self.defaults = SamplingParams()
        self.delay = delay
        self.dead = False
        self.finished = 0
        self.tokens = 0
        self._reply = reply
        self._script = script
        self._max_waiting = max_waiting
        self._coder = byte_tokenizer()

    def default_sampling_params(self) -> SamplingParams:
        return self.defaults

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str = "",
        resume_token_ids: ResumeTokenIds | None = None,
        kv_source: object = None,
        hold_kv: bool = False,
    ) -> AsyncIterator[RequestOutput]:
        if self.dead:
            raise EngineDeadError("stopped by the test")
        if self._max_waiting and len(self.running) >= self._max_waiting:
            raise QueueFullError("the queue is full")
        assert request_id not in self.running, "request ids must be unique"
        ids = self._coder.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self.seen.append((ids, params))
        self.priorities.append(priority)
        stop = self.running[request_id] = asyncio.Event()
        try:
            past = sum(len(tokens or ()) for tokens in resume_token_ids or ())
            async for output in self._stream(ids, params, request_id, stop, past):
                yield output
        finally:
            if self.running.pop(request_id, None) is not None and not stop.is_set():
                self.finished += 1

    async def _stream(
        self,
        ids: list[int],
        params: SamplingParams,
        request_id: str,
        stop: asyncio.Event,
        past: int,
    ) -> AsyncIterator[RequestOutput]:
        """`past`: how many tokens of the one completion were generated elsewhere."""
        steps, reason, stop_reason = self._plan(ids, params)
        if past:
            told = self._coder.decode([t for _, tokens in steps for t in tokens][:past])
            yield RequestOutput(
                request_id, None, ids, [CompletionOutput(0, told, [0] * past)], False, resumed=True
            )
            while past > 0:
                past -= len(steps.pop(0)[1])
        prompt_lps: list[LogprobsAtPosition | None] | None = None
        if params.prompt_logprobs is not None:
            prompt_lps = [None, *self._logprobs(ids[1:], params.prompt_logprobs)]
        for i, (text, tokens) in enumerate(steps):
            await self._pause(stop)
            last = i == len(steps) - 1
            ended = "abort" if stop.is_set() else reason if last else None
            self.tokens += len(tokens)
            outputs = [
                CompletionOutput(
                    index=k,
                    text=text,
                    token_ids=tokens,
                    logprobs=None if params.logprobs is None
                    else self._logprobs(tokens, params.logprobs),
                    finish_reason=ended,
                    stop_reason=stop_reason if last else None,
                )
                for k in range(params.n)
            ]  # fmt: skip
            yield RequestOutput(
                request_id, None, ids, outputs, ended is not None,
                prompt_logprobs=prompt_lps if i == 0 else None, num_cached_tokens=min(4, len(ids)),
            )  # fmt: skip
            if stop.is_set():
                return

    async def _pause(self, stop: asyncio.Event) -> None:
        """One step's time, or less when the request is aborted."""
        if not self.delay:
            await asyncio.sleep(0)
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), self.delay)

    def _plan(
        self, ids: list[int], params: SamplingParams
    ) -> tuple[list[tuple[str, list[int]]], str, str | None]:
        """(text, token ids) of each step, and how it ends."""
        prompt = self._coder.decode(ids, skip_special_tokens=False)
        text = self._text(prompt, params)
        reason, stop_reason = "stop", None
        for mark in params.stop:
            if mark in text:
                text, stop_reason = text[: text.index(mark)], mark
        tokens = self._coder.encode(text)
        if params.ignore_eos:
            tokens = (tokens * (1 + (params.max_tokens or 1) // len(tokens)))[: params.max_tokens]
        if params.max_tokens is not None and len(tokens) > params.max_tokens:
            tokens, reason, stop_reason = tokens[: params.max_tokens], "length", None
        elif params.ignore_eos:
            reason = "length"
        return self._steps(tokens), reason, stop_reason

    def _text(self, prompt: str, params: SamplingParams) -> str:
        if self._script is not None:
            return self._script(prompt, params)
        return self._reply(prompt) if callable(self._reply) else self._reply

    def _steps(self, tokens: list[int]) -> list[tuple[str, list[int]]]:
        space = self._coder.encode(" ")[0]
        steps: list[tuple[str, list[int]]] = []
        begin = 0
        for i, token in enumerate(tokens):
            if token == space or i == len(tokens) - 1:
                piece = tokens[begin : i + 1]
                steps.append((self._coder.decode(piece), piece))
                begin = i + 1
        return steps or [("", [])]

    def _logprobs(self, tokens: Sequence[int], top: int) -> list[LogprobsAtPosition]:
        positions: list[LogprobsAtPosition] = []
        for token in tokens:
            others = [(token + k) % 256 for k in range(max(1, top))]
            positions.append(
                {t: Logprob(-0.5 * (r + 1), r + 1, self._coder.decode([t]))
                 for r, t in enumerate(others)}
            )  # fmt: skip
        return positions

    async def abort(self, request_id: str) -> None:
        stop = self.running.get(request_id)
        if stop is not None:
            stop.set()
            self.aborted.append(request_id)

    def stats(self) -> dict[str, float]:
        return {
            "num_running": len(self.running),
            "num_waiting": 0,
            "num_kv_blocks": 100,
            "num_referenced_blocks": 2 * len(self.running),
            "num_generated_tokens": self.tokens,
            "num_prefix_queries": 10,
            "num_prefix_hits": 4,
        }

    def is_healthy(self) -> bool:
        return not self.dead

    async def close(self) -> None:
        for stop in self.running.values():
            stop.set()

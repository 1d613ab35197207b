"""The engine for asyncio programs and servers: `EngineClient` in this process."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from dlcore.bundled_model import make_config
from dlcore.config import EngineConfig
from dlcore.core_request import check_prompt_text, encode_prompt
from dlcore.engine_client import EngineDeadError
from dlcore.engine_factory import open_session
from dlcore.engine_session import EngineSession
from dlcore.kv_peer import KvPeer
from dlcore.output_queue import OutputQueue
from dlcore.outputs import RequestOutput
from dlcore.resumption import ResumeTokenIds
from dlcore.sampling_params import SamplingParams
from dlcore.tokenizer import Tokenizer

HEALTH_CHECK_INTERVAL_S = 1.0
DRAIN_CHECK_INTERVAL_S = 0.02
# Longer prompts are tokenised on a thread: the event loop must keep its pace.
LONG_PROMPT_CHARS = 8192


class AsyncLLM:
    """`AsyncLLM(model, **options)`: the options are the fields of `EngineConfig`.

    All methods belong to one event loop, the one that first calls `generate`.
    """

    def __init__(
        self, model: str | None = None, *, session: EngineSession | None = None, **options: Any
    ) -> None:
        """Loads the model; `model=None` is the bundled one. Raises ConfigError."""
        self._session = session or open_session(make_config(model, options))
        # For those who do not close: the core's thread must not outlive the interpreter.
        self._stop = weakref.finalize(self, self._session.stop)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._health_timer: asyncio.TimerHandle | None = None
        self._closed = False

    @classmethod
    def from_config(cls, config: EngineConfig) -> AsyncLLM:
        return cls(session=open_session(config))

    @property
    def model_name(self) -> str:
        return self._session.model.name

    @property
    def max_model_len(self) -> int:
        return self._session.model.limits.max_model_len

    @property
    def vocab_size(self) -> int:
        return self._session.model.limits.vocab_size

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._session.model.tokenizer

    def default_sampling_params(self) -> SamplingParams:
        """What the model's authors advise (generation_config.json)."""
        return self._session.model.default_params

    @property
    def kv_peer(self) -> KvPeer | None:
        return self._session.kv_peer

    @property
    def num_unfinished_requests(self) -> int:
        return self._session.num_requests

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str = "",
        resume_token_ids: ResumeTokenIds | None = None,
        kv_source: Any = None,
        hold_kv: bool = False,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Deltas until `finished`; see `EngineClient.generate`."""
        text = prompt if isinstance(prompt, str) else None
        ids = await self._encode(prompt) if isinstance(prompt, str) else list(prompt)
        grammar = None
        if params.structured_outputs is not None:
            grammar = await asyncio.to_thread(self._session.rules.compile, params)
        queue = OutputQueue(self._attach())
        state = self._session.open(
            request_id,
            text,
            ids,
            params,
            queue.put,
            priority=priority,
            cache_salt=cache_salt,
            grammar=grammar,
            resume_token_ids=resume_token_ids,
            kv_source=kv_source,
            hold_kv=hold_kv,
        )
        try:
            while True:
                output = await queue.get()
                yield output
                if output.finished:
                    return
        finally:
            if not state.finished:
                self._session.forget(state)

    async def abort(self, request_id: str) -> None:
        """Ends the request's stream with finish_reason "abort"; unknown ids are ignored."""
        self._session.abort(request_id)

    def stats(self) -> dict[str, float]:
        return self._session.core.stats()

    def is_healthy(self) -> bool:
        return not self._closed and self._session.is_alive()

    async def close(self, *, drain_timeout_s: float = 0.0) -> None:
        """Lets running requests finish for `drain_timeout_s`, aborts the rest, stops the core."""
        if self._closed:
            return
        self._closed = True
        await self._drain(drain_timeout_s)
        for request_id in self._session.request_ids():
            self._session.abort(request_id)
        if self._loop is not None:
            self._loop.remove_reader(self._session.core.output_fd())
        if self._health_timer is not None:
            self._health_timer.cancel()
        await asyncio.to_thread(self._stop)

    async def _encode(self, prompt: str) -> list[int]:
        model = self._session.model
        check_prompt_text(prompt, model.tokenizer, model.limits)
        if len(prompt) <= LONG_PROMPT_CHARS:
            return encode_prompt(prompt, model.tokenizer)
        return await asyncio.to_thread(encode_prompt, prompt, model.tokenizer)

    def _attach(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise EngineDeadError("the engine is closed")
        self._session.check_alive()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._session.core.output_fd(), self._on_output)
        if self._health_timer is None:
            self._health_timer = self._loop.call_later(HEALTH_CHECK_INTERVAL_S, self._on_timer)
        return self._loop

    def _on_output(self) -> None:
        """One wake takes everything the core has and hands it out."""
        batch = self._session.core.poll(0.0)
        if batch is None:
            return
        try:
            self._session.process(batch)
        except EngineDeadError as error:
            self._session.fail_all(error)

    def _on_timer(self) -> None:
        """A core that died without a word must not leave its requests waiting."""
        self._health_timer = None
        if not self._session.num_requests:
            return
        try:
            self._attach()
        except EngineDeadError as error:
            self._session.fail_all(error)

    async def _drain(self, timeout_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._session.num_requests and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(DRAIN_CHECK_INTERVAL_S)

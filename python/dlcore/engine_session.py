"""The requests in flight in one core: submits them, routes the core's output to them.

`AsyncLLM` and `LLM` are this with an event loop and without one. A request with n > 1 is n
sequences of the core with seeds seed, seed + 1, ...; the first goes ahead, the others follow
its first output and find the prompt's KV in the prefix cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dlcore import _core
from dlcore.completion_state import FINISH_ERROR, CompletionState
from dlcore.core_engine import (
    CoreEngine,
    CoreOutputBatch,
    Int32Array,
    parameter_error,
    refusal,
)
from dlcore.core_request import (
    RequestLimits,
    check_request,
    check_resume_ids,
    core_params,
    draw_seed,
    max_tokens_of,
)
from dlcore.detokenizer import DetokenizerFactory
from dlcore.engine_client import EngineDeadError, QueueFullError
from dlcore.kv_peer import KvPeer
from dlcore.outputs import CompletionOutput, KvLease
from dlcore.request_state import OutputSink, RequestState
from dlcore.resumption import ResumeTokenIds, check_resume
from dlcore.sampling_params import ParameterError, SamplingParams
from dlcore.structured.rules import RequestRules
from dlcore.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What a front end must know of the model behind a core."""

    name: str
    limits: RequestLimits
    device: str  # "cpu", "cuda" or "null"
    max_num_seqs: int
    block_size: int
    eos_token_ids: frozenset[int]
    tokenizer: Tokenizer | None
    # What the model's authors advise.
    default_params: SamplingParams = field(default_factory=SamplingParams)


class SessionRules(Protocol):
    """See structured.rules.RequestRules."""

    def compile(self, params: SamplingParams) -> Any: ...
    def submit_options(
        self, core_id: int, params: SamplingParams, grammar: Any, *, resumed: bool = False
    ) -> dict[str, Any]: ...
    def release(self, core_ids: Sequence[int]) -> None: ...
    def close(self) -> None: ...


def rules_of(model: ServedModel) -> RequestRules:
    return RequestRules(model.tokenizer, model.limits.vocab_size, sorted(model.eos_token_ids))


class EngineSession:
    """Not thread safe: one event loop, or one thread, owns it."""

    def __init__(
        self,
        core: CoreEngine,
        model: ServedModel,
        make_params: Callable[..., Any],
        *,
        stop_core: Callable[[], object] | None = None,
        rules: SessionRules | None = None,
        kv_peer: KvPeer | None = None,
    ) -> None:
        """`stop_core`: by default `core.stop`. `rules`: where those of constrained requests are
        compiled, by default here."""
        self.core = core
        self.model = model
        self._make_params = make_params
        self._stop_core = stop_core or core.stop
        self.kv_peer = kv_peer
        self._detokenizers = (
            DetokenizerFactory(model.tokenizer) if model.tokenizer is not None else None
        )
        if self._detokenizers is not None:
            self._detokenizers.make()  # its table now, not while the first request waits
        self.rules = rules or rules_of(model)
        self._next_core_id = itertools.count(1)
        self._requests: dict[str, RequestState] = {}
        # core id -> its completion and request
        self._routes: dict[int, tuple[CompletionState, RequestState]] = {}

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    def open(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        sink: OutputSink,
        *,
        priority: int = 0,
        cache_salt: str = "",
        grammar: Any = None,
        resume_token_ids: ResumeTokenIds | None = None,
        kv_source: Any = None,
        hold_kv: bool = False,
    ) -> RequestState:
        """Starts a request. Raises ParameterError, QueueFullError, EngineDeadError.

        `kv_source` (_core.KvSource) serves the first completion; the others find the prompt in
        the prefix cache. `hold_kv`: for a request with n=1.

        `grammar`: `rules.compile(params)`, done before because it may take seconds; else it
        is done here.
        """
        if request_id in self._requests:
            raise ParameterError("request_id", f"{request_id!r} is already running")
        model = self.model
        # Kept for the core: to make an array of 32k ids takes 0.7 ms.
        prompt_ids = check_request(prompt_token_ids, params, model.limits, model.tokenizer)
        open_completions = list(range(params.n))
        if resume_token_ids is not None:
            check_resume(resume_token_ids, params.n)
            check_resume_ids(resume_token_ids, model.limits)
            open_completions = [i for i in open_completions if resume_token_ids[i] is not None]
        state = RequestState(
            request_id=request_id,
            prompt=prompt,
            prompt_token_ids=prompt_token_ids,
            params=params,
            seed=draw_seed(params),
            priority=priority,
            cache_salt=cache_salt,
            sink=sink,
            completions=[self._new_completion(i, params) for i in range(params.n)],
            grammar=self.rules.compile(params) if grammar is None else grammar,
            num_open=len(open_completions),
            unsubmitted=open_completions,
            resume_token_ids=resume_token_ids,
            kv_source=kv_source,
            hold_kv=hold_kv,
        )
        if resume_token_ids is not None:
            self._resume(state)
        shares_prompt = len(prompt_token_ids) > model.block_size
        self._requests[request_id] = state
        try:
            self._submit(state, prompt_ids, 1 if shares_prompt else params.n)
        except Exception:
            self.forget(state)
            raise
        return state

    def process(self, batch: CoreOutputBatch) -> None:
        """Hands every row of the batch to the request it belongs to.

        Raises EngineDeadError when the core failed as a whole: then call fail_all.
        """
        for row, (core_id, ids, finish, stop_token, cached) in enumerate(batch.rows()):
            route = self._routes.get(core_id)
            if route is None:
                continue  # aborted while the core was producing
            completion, request = route
            if core_id == request.core_ids[0]:
                request.num_cached_tokens = cached
            if finish == FINISH_ERROR and not self.is_alive():
                raise EngineDeadError(batch.error(row))
            if finish == FINISH_ERROR and (refused := refusal(batch.error(row))) is not None:
                self.forget(request)
                request.sink(refused)
                continue
            self._read_prompt_logprobs(batch, row, request)
            if request.hold_kv and (named := batch.kv_lease(row)) is not None:
                request.lend(KvLease(*named))
            if not ids and not finish:
                continue
            wanted = request.params.logprobs is not None
            logprobs = batch.logprobs(row) if wanted else ()
            delta = completion.advance(ids, finish, stop_token, logprobs)
            self._close_if_finished(core_id, request, delta, core_finished=finish != 0)
            request.deliver(delta, batch.error(row) if finish == FINISH_ERROR else None)
            if request.unsubmitted:
                self._submit_siblings(request)

    def abort(self, request_id: str) -> None:
        """Ends a request; its stream ends with finish_reason "abort". Unknown ids are ignored."""
        state = self._requests.get(request_id)
        if state is None:
            return
        self.forget(state)
        for completion in state.completions:
            if not completion.finished:
                completion.finished = True
                state.deliver(CompletionOutput(completion.index, finish_reason="abort"))

    def forget(self, state: RequestState) -> None:
        """Ends a request nobody listens to any more."""
        self._requests.pop(state.request_id, None)
        live = [i for i in state.core_ids if self._routes.pop(i, None) is not None]
        self.rules.release(state.core_ids)
        if live:
            self.core.abort(live)

    def fail_all(self, error: Exception) -> None:
        """Every request ends with `error`."""
        requests = list(self._requests.values())
        self.rules.release(list(self._routes))
        self._requests.clear()
        self._routes.clear()
        for request in requests:
            request.sink(error)

    def request_ids(self) -> list[str]:
        return list(self._requests)

    def stop(self) -> None:
        """Stops the core. Any thread; idempotent."""
        self._stop_core()
        self.rules.close()

    def is_alive(self) -> bool:
        return self.core.is_healthy()

    def check_alive(self) -> None:
        """Raises EngineDeadError when the core stopped or stalled."""
        if not self.is_alive():
            raise EngineDeadError("the engine stopped or stalled; restart the server")

    def _new_completion(self, index: int, params: SamplingParams) -> CompletionState:
        model = self.model
        return CompletionState(
            index, params, model.tokenizer, self._detokenizers, model.eos_token_ids
        )

    def _resume(self, state: RequestState) -> None:
        """Brings every completion to where the other engine left it."""
        deltas = []
        for completion in state.completions:
            if completion.index not in state.unsubmitted:
                completion.finished = True
                continue
            deltas.append(completion.resume(state.resume_of(completion.index)))
        deltas = [delta for delta in deltas if delta.token_ids]
        if deltas:
            state.repeat(deltas)

    def _submit(self, state: RequestState, prompt: Int32Array, count: int) -> None:
        """Submits the next `count` completions, or as many as there are."""
        for _ in range(min(count, len(state.unsubmitted))):
            index = state.unsubmitted.pop(0)
            core_id = next(self._next_core_id)
            state.core_ids.append(core_id)
            self._submit_one(core_id, prompt, state, index)
            self._routes[core_id] = (state.completions[index], state)

    def _submit_one(self, core_id: int, prompt: Any, state: RequestState, index: int) -> None:
        model = self.model
        fields = core_params(
            state.params,
            seed=state.seed + index,
            max_tokens=max_tokens_of(state.params, len(prompt), model.limits),
            tokenizer=model.tokenizer,
        )
        if len(state.core_ids) > 1:
            fields["prompt_logprobs"] = -1  # the first one's serve all
        resumed = state.resume_of(index)
        options = self.rules.submit_options(
            core_id, state.params, state.grammar, resumed=len(resumed) > 0
        )
        if len(resumed):
            options["resume_token_ids"] = np.asarray(resumed, dtype=np.int32)
        if state.hold_kv:
            options["hold_kv"] = True
        if state.kv_source is not None:
            options["kv_source"], state.kv_source = state.kv_source, None
        try:
            self.core.submit(
                core_id,
                prompt,
                self._make_params(**fields),
                priority=state.priority,
                cache_salt=state.cache_salt.encode("utf-8"),
                **options,
            )
        except ValueError as error:
            raise parameter_error(str(error)) from None
        except _core.QueueFull as error:
            raise QueueFullError(str(error)) from None
        except _core.EngineUnavailable as error:
            raise EngineDeadError(str(error)) from None

    def _submit_siblings(self, request: RequestState) -> None:
        try:
            prompt_ids = np.asarray(request.prompt_token_ids, dtype=np.int32)
            self._submit(request, prompt_ids, len(request.unsubmitted))
        except Exception as error:  # this request's failure must not stop the others' output
            self.forget(request)
            request.sink(error)

    def _close_if_finished(
        self, core_id: int, request: RequestState, delta: CompletionOutput, *, core_finished: bool
    ) -> None:
        if delta.finish_reason is None:
            return
        del self._routes[core_id]
        self.rules.release((core_id,))
        if not core_finished:
            self.core.abort([core_id])  # a stop string ended it
        if request.num_open == 1:
            del self._requests[request.request_id]

    def _read_prompt_logprobs(
        self, batch: CoreOutputBatch, row: int, request: RequestState
    ) -> None:
        if request.params.prompt_logprobs is None:
            return
        rows: Sequence[Any] = batch.prompt_logprobs(row)
        if rows:
            request.add_prompt_logprobs(rows, self.model.tokenizer)

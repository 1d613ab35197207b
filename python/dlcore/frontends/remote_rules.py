"""Rules of constrained requests, on both sides of the socket.

A front end compiles a rule to answer a bad one at once; the engine process compiles it again
to supply its masks, away from the thread that takes requests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from dlcore.frontends.messages import Submit
from dlcore.sampling_params import ReasoningSpan, SamplingParams, StructuredOutputs
from dlcore.structured.rules import RequestRules

COMPILE_THREADS = 2


class RemoteRules:
    """A front end's side: the rule goes along with the request."""

    def __init__(self, local: RequestRules) -> None:
        self._local = local

    def compile(self, params: SamplingParams) -> Any:
        return self._local.compile(params)

    def submit_options(
        self, core_id: int, params: SamplingParams, grammar: Any, *, resumed: bool = False
    ) -> dict[str, Any]:
        wanted = params.structured_outputs
        return {} if wanted is None else {"structured": asdict(wanted)}

    def release(self, core_ids: Sequence[int]) -> None:
        """The engine process lets go when the request ends there."""

    def close(self) -> None:
        self._local.close()


class RuledSubmits:
    """The engine process's side: compiles off the caller's thread, then submits.

    `submit(message, options)` runs on a thread of this object; `forget` from any.
    """

    def __init__(
        self, rules: RequestRules, submit: Callable[[Submit, Callable[[], dict[str, Any]]], None]
    ) -> None:
        self._rules = rules
        self._submit = submit
        self._lock = threading.Lock()
        self._waiting: set[int] = set()
        self._pool = ThreadPoolExecutor(COMPILE_THREADS, thread_name_prefix="frontend-rules")

    def start(self, message: Submit) -> None:
        with self._lock:
            self._waiting.add(message.id)
        self._pool.submit(self._run, message)

    def forget(self, core_ids: Sequence[int]) -> None:
        """Aborted: what still waits for its grammar is not submitted."""
        with self._lock:
            self._waiting.difference_update(core_ids)

    def ended(self, core_id: int) -> None:
        self._rules.release((core_id,))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._rules.close()

    def _run(self, message: Submit) -> None:
        self._submit(message, lambda: self._options(message))

    def _options(self, message: Submit) -> dict[str, Any]:
        """Raises ParameterError."""
        params = SamplingParams(
            structured_outputs=read_rule(message.structured or {}),
            stop_token_ids=tuple(message.params.get("stop_token_ids", ())),
        )
        grammar = self._rules.compile(params)
        with self._lock:
            if message.id not in self._waiting:
                raise ForgottenError
            self._waiting.discard(message.id)
        return self._rules.submit_options(message.id, params, grammar, resumed=bool(message.resume))


class ForgottenError(Exception):
    """The request was aborted before its grammar was ready."""


def read_rule(fields: dict[str, Any]) -> StructuredOutputs:
    """The rule of `dataclasses.asdict(rule)` after a trip through msgpack."""
    span, choice = fields.get("reasoning"), fields.get("choice")
    return StructuredOutputs(
        **{
            **fields,
            "reasoning": None if span is None else ReasoningSpan(**span),
            "choice": None if choice is None else tuple(choice),
        }
    )

"""The rules of an engine session's requests. Loads xgrammar when the first rule comes."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dlcore.sampling_params import ParameterError, SamplingParams
from dlcore.tokenizer import Tokenizer

if TYPE_CHECKING:
    from dlcore.structured.service import Constraint, GrammarService


class RequestRules:
    """By core request id. `compile` may run on any thread, the rest on the session's."""

    def __init__(
        self, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._lock = threading.Lock()
        self._service: GrammarService | None = None
        self._constraints: dict[int, Constraint] = {}

    def compile(self, params: SamplingParams) -> Any:
        """The grammar of a request, None if it has no rule. Blocks. Raises ParameterError."""
        wanted = params.structured_outputs
        return None if wanted is None else self._ready_service(wanted.param).compile(wanted)

    def submit_options(
        self, core_id: int, params: SamplingParams, grammar: Any, *, resumed: bool = False
    ) -> dict[str, Any]:
        """What `core.submit` needs for a sequence under `grammar`."""
        wanted = params.structured_outputs
        if wanted is None:
            return {}
        service = self._ready_service(wanted.param)
        constraint = service.constrain(grammar, wanted, params.stop_token_ids, resumed=resumed)
        self._constraints[core_id] = constraint
        return {"constraint": constraint.core}

    def release(self, core_ids: Sequence[int]) -> None:
        """The sequences ended."""
        if not self._constraints:
            return
        for core_id in core_ids:
            constraint = self._constraints.pop(core_id, None)
            if constraint is not None:
                constraint.close()

    def close(self) -> None:
        self.release(list(self._constraints))
        with self._lock:
            if self._service is not None:
                self._service.close()
                self._service = None

    def _ready_service(self, param: str) -> GrammarService:
        with self._lock:
            if self._service is None:
                if self._tokenizer is None:
                    raise ParameterError(param, "this model has no tokenizer")
                try:
                    module = importlib.import_module("dlcore.structured.service")
                except ImportError as error:
                    raise ParameterError(
                        param, f"needs xgrammar: pip install 'dlcore[grammar]' ({error})"
                    ) from None
                self._service = module.GrammarService(
                    self._tokenizer, self._vocab_size, self._eos_token_ids
                )
            return self._service

"""What an engine session uses of this package."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dlcore import _core
from dlcore.sampling_params import ParameterError, StructuredOutputs
from dlcore.structured.compiler import GrammarCompiler
from dlcore.structured.mask_worker import MaskWorker, Supply
from dlcore.structured.sequence_rule import SequenceRule
from dlcore.structured.spec import grammar_spec
from dlcore.structured.trial_compiler import CompileError
from dlcore.structured.xgrammar_compile import tokenizer_info
from dlcore.tokenizer import Tokenizer


class Constraint:
    """A sequence's rule in force: `core` goes to the engine; close it when the sequence ends."""

    def __init__(self, worker: MaskWorker, key: int, core: _core.TokenConstraint) -> None:
        self.core = core
        self._worker = worker
        self._key = key

    def close(self) -> None:
        self._worker.remove(self._key)


class GrammarService:
    """Compiles rules and supplies masks. Starts its thread with the first constrained sequence.

    Thread safety: any thread.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """vocab_size: the model's, which may be larger than the tokenizer's."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        special = tokenizer.special_token_ids() | frozenset(eos_token_ids)
        texts = [b"" if i in special else tokenizer.token_bytes(i) for i in range(vocab_size)]
        self._compiler = GrammarCompiler(tokenizer_info(texts, list(self._eos_token_ids)))
        # JSON on one line has no control characters; the compiler lets some into its strings.
        no_control = (i for i, text in enumerate(texts) if not text or min(text) >= 0x20)
        self._json_tokens = self._mask_of(no_control).view(np.int32)
        self._keys = itertools.count(1)
        self._lock = threading.Lock()
        self._queue: _core.ConstraintQueue | None = None
        self._worker: MaskWorker | None = None

    def compile(self, wanted: StructuredOutputs) -> Any:
        """A grammar for `constrain`. Blocks, up to seconds. Raises ParameterError."""
        try:
            return self._compiler.compile(grammar_spec(wanted))
        except CompileError as error:
            raise ParameterError(wanted.param, str(error)) from None

    def constrain(
        self,
        grammar: Any,
        wanted: StructuredOutputs,
        stop_token_ids: Sequence[int],
        *,
        resumed: bool = False,
    ) -> Constraint:
        """`stop_token_ids`: what may end the answer besides the model's EOS ids.

        `resumed`: the request brings tokens along that were generated elsewhere.
        """
        queue, worker = self._running_worker()
        key = next(self._keys)
        core = _core.TokenConstraint(queue, key, self._vocab_size)
        stops = sorted({*self._eos_token_ids, *stop_token_ids})
        is_json = wanted.json_object or wanted.json_schema is not None
        cut = self._json_tokens if is_json else None
        rule = SequenceRule(grammar, stops, wanted.reasoning, self._tokenizer, cut)
        worker.add(key, Supply(core, rule, self._mask_of(stops)), resumed=resumed)
        return Constraint(worker, key, core)

    @property
    def num_sequences(self) -> int:
        return self._worker.num_sequences if self._worker else 0

    def close(self) -> None:
        with self._lock:
            if self._worker is not None:
                self._worker.close()
                self._worker = None
        self._compiler.close()

    def _running_worker(self) -> tuple[_core.ConstraintQueue, MaskWorker]:
        with self._lock:
            if self._queue is None:
                self._queue = _core.ConstraintQueue()
            if self._worker is None:
                self._worker = MaskWorker(self._queue, self._vocab_size)
            return self._queue, self._worker

    def _mask_of(self, token_ids: Iterable[int]) -> npt.NDArray[np.uint32]:
        ids = np.fromiter(token_ids, dtype=np.int64)
        mask = np.zeros(-(-self._vocab_size // 32), dtype=np.uint32)
        np.bitwise_or.at(mask, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
        return mask

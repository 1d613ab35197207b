"""Computes token masks off the engine's thread, for all constrained sequences of a step at once.

The engine announces generated tokens on a queue; a thread here advances the sequences' rules
and answers with masks. xgrammar fills masks without the GIL. A rule whose masks are slow moves
to a thread of its own, so that the others do not wait for it, and one that uses up its time
is ended: its mask allows nothing, which fails that request alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import xgrammar

from dlcore.structured.sequence_rule import SequenceRule

logger = logging.getLogger(__name__)

POLL_TIMEOUT_S = 0.5
FILL_THREADS = 4
SLOW_MASK_S = 0.05
# One mask may take this long, and all of a request's masks together that long, per token.
MAX_MASK_S = 2.0
MAX_ROWS = 256


class ConstraintQueue(Protocol):
    """_core.ConstraintQueue."""

    def poll(self, timeout_s: float) -> list[tuple[int, int, list[int]]]: ...


class TokenConstraint(Protocol):
    """_core.TokenConstraint."""

    def set_mask(self, num_tokens_seen: int, mask: object, finished: bool = False) -> bool: ...


@dataclass(slots=True, eq=False)
class Supply:
    """One constrained sequence."""

    constraint: TokenConstraint
    rule: SequenceRule
    stop_mask: np.ndarray[tuple[int, ...], np.dtype[np.uint32]]
    is_slow: bool = False
    is_broken: bool = False


Work = list[tuple[Supply, int, list[int]]]


class MaskWorker:
    """Thread safety: `add` and `remove` by any thread."""

    def __init__(self, queue: ConstraintQueue, vocab_size: int) -> None:
        self._queue = queue
        self._words = -(-vocab_size // 32)
        self._masks = np.zeros((MAX_ROWS, self._words), dtype=np.int32)
        self._filler = xgrammar.BatchGrammarMatcher(max_threads=FILL_THREADS)
        self._supplies: dict[int, Supply] = {}
        self._slow_lane = ThreadPoolExecutor(1, thread_name_prefix="dlcore-slow-masks")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dlcore-masks", daemon=True)
        self._thread.start()

    def add(self, key: int, supply: Supply) -> None:
        """Sets the sequence's first mask; submit it to the engine after this."""
        self._supplies[key] = supply
        self._answer_alone(supply, 0, [])

    def remove(self, key: int) -> None:
        self._supplies.pop(key, None)

    @property
    def num_sequences(self) -> int:
        return len(self._supplies)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._slow_lane.shutdown(cancel_futures=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            work = self._queue.poll(POLL_TIMEOUT_S)
            fast: Work = []
            for key, num_seen, tokens in work:
                supply = self._supplies.get(key)
                if supply is None:
                    continue
                if supply.is_slow:
                    self._slow_lane.submit(self._answer_alone, supply, num_seen, tokens)
                else:
                    fast.append((supply, num_seen, tokens))
            for first in range(0, len(fast), MAX_ROWS):
                self._answer_batch(fast[first : first + MAX_ROWS])

    def _answer_batch(self, work: Work) -> None:
        if len(work) == 1:
            self._answer_alone(*work[0])
            return
        started = time.perf_counter()
        by_grammar: list[tuple[int, SequenceRule]] = []
        for i, (supply, _, tokens) in enumerate(work):
            if not _accept(supply, tokens):
                self._masks[i] = 0
            elif supply.rule.is_free:
                self._masks[i] = -1
            else:
                by_grammar.append((i, supply.rule))
        if by_grammar:
            self._filler.batch_fill_next_token_bitmask(
                [rule.matcher for _, rule in by_grammar], self._masks, [i for i, _ in by_grammar]
            )
        for i, rule in by_grammar:
            rule.add_opening(self._masks[i])
        for i, (supply, num_seen, _) in enumerate(work):
            self._set(supply, num_seen, self._masks[i])
        if time.perf_counter() - started > SLOW_MASK_S:
            self._find_slow([supply for supply, _, _ in work])

    def _find_slow(self, supplies: Sequence[Supply]) -> None:
        """A batch was slow: times each rule once more, alone."""
        row = np.zeros(self._words, dtype=np.int32)
        for supply in supplies:
            started = time.perf_counter()
            supply.rule.fill(row)
            supply.is_slow = time.perf_counter() - started > SLOW_MASK_S

    def _answer_alone(self, supply: Supply, num_seen: int, tokens: list[int]) -> None:
        row = np.zeros(self._words, dtype=np.int32)
        started = time.perf_counter()
        if _accept(supply, tokens):
            supply.rule.fill(row)
        seconds = time.perf_counter() - started
        supply.is_slow = seconds > SLOW_MASK_S
        if seconds > MAX_MASK_S:
            logger.warning("a grammar took %.1f s for one token mask; its request fails", seconds)
            supply.is_broken = True
            row.fill(0)
        self._set(supply, num_seen, row)

    def _set(
        self, supply: Supply, num_seen: int, row: np.ndarray[tuple[int, ...], np.dtype[np.int32]]
    ) -> None:
        mask = row.view(np.uint32)
        finished = bool(mask.any()) and not (mask & ~supply.stop_mask).any()
        supply.constraint.set_mask(num_seen, mask, finished)


def _accept(supply: Supply, tokens: Sequence[int]) -> bool:
    """False, for good, once the rule refused a token or was given up."""
    if not supply.is_broken and not all(supply.rule.accept(token) for token in tokens):
        logger.error("a generated token was outside of its grammar's mask")
        supply.is_broken = True
    return not supply.is_broken

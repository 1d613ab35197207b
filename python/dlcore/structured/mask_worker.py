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

import numpy as np
import numpy.typing as npt
import xgrammar

from dlcore import _core
from dlcore.structured.sequence_rule import MaskRow, SequenceRule

logger = logging.getLogger(__name__)

POLL_TIMEOUT_S = 0.5
FILL_THREADS = 4
SLOW_MASK_S = 0.05
# What ends a request: one mask, or all of its slow ones together, taking this long.
MAX_MASK_S = 2.0
MAX_SLOW_MASKS_S = 30.0
MAX_ROWS = 256


@dataclass(slots=True, eq=False)
class Supply:
    """One constrained sequence."""

    constraint: _core.TokenConstraint
    rule: SequenceRule
    stop_mask: npt.NDArray[np.uint32]  # the tokens that may end the answer
    is_slow: bool = False
    is_broken: bool = False
    slow_seconds: float = 0.0  # spent on slow masks


Work = list[tuple[Supply, int, list[int]]]


class MaskWorker:
    """Thread safety: `add` and `remove` by any thread."""

    def __init__(self, queue: _core.ConstraintQueue, vocab_size: int) -> None:
        self._queue = queue
        self._words = -(-vocab_size // 32)
        self._masks = np.zeros((MAX_ROWS, self._words), dtype=np.int32)
        self._filler = xgrammar.BatchGrammarMatcher(max_threads=FILL_THREADS)
        self._supplies: dict[int, Supply] = {}
        self._first_lane = ThreadPoolExecutor(1, thread_name_prefix="dlcore-first-masks")
        self._slow_lane = ThreadPoolExecutor(1, thread_name_prefix="dlcore-slow-masks")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dlcore-masks", daemon=True)
        self._thread.start()

    def add(self, key: int, supply: Supply, *, resumed: bool = False) -> None:
        """Starts with the sequence's first mask.

        A resumed sequence's first mask follows its earlier tokens, which the engine announces.
        """
        supply.is_slow = resumed  # those many tokens are taken beside the others' masks
        self._supplies[key] = supply
        if not resumed:
            self._first_lane.submit(self._answer_alone, supply, 0, [])

    def remove(self, key: int) -> None:
        self._supplies.pop(key, None)

    @property
    def num_sequences(self) -> int:
        return len(self._supplies)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        for lane in (self._first_lane, self._slow_lane):
            lane.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            fast: Work = []
            for key, num_seen, tokens in self._queue.poll(POLL_TIMEOUT_S):
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
        together: list[int] = []
        for i, (supply, _, tokens) in enumerate(work):
            _clock(supply, _accept(supply, tokens))
            if supply.is_broken or not supply.rule.needs_grammar:
                _fill(supply, self._masks[i])
            else:
                together.append(i)
        rules = [work[i][0].rule for i in together]
        if rules:
            matchers = [rule.matcher for rule in rules]
            self._filler.batch_fill_next_token_bitmask(matchers, self._masks, together)
        for i, rule in zip(together, rules, strict=True):
            rule.refine(self._masks[i])
        for i, (supply, num_seen, _) in enumerate(work):
            _set(supply, num_seen, self._masks[i])
        if time.perf_counter() - started > SLOW_MASK_S:
            self._find_slow([supply for supply, _, _ in work])

    def _find_slow(self, supplies: Sequence[Supply]) -> None:
        """A batch was slow: times each rule once more, alone."""
        row = np.zeros(self._words, dtype=np.int32)
        for supply in supplies:
            if not supply.is_slow:
                _clock(supply, _fill(supply, row))

    def _answer_alone(self, supply: Supply, num_seen: int, tokens: list[int]) -> None:
        row = np.zeros(self._words, dtype=np.int32)
        _clock(supply, _accept(supply, tokens) + _fill(supply, row))
        if supply.is_broken:
            row.fill(0)
        _set(supply, num_seen, row)


def _clock(supply: Supply, seconds: float) -> None:
    """Judges a rule by the time its last mask took."""
    supply.is_slow = seconds > SLOW_MASK_S
    if not supply.is_slow:
        return
    supply.slow_seconds += seconds
    if seconds > MAX_MASK_S or supply.slow_seconds > MAX_SLOW_MASKS_S:
        logger.warning("a grammar's token masks take too long (%.2f s); its request fails", seconds)
        supply.is_broken = True


def _accept(supply: Supply, tokens: Sequence[int]) -> float:
    """The seconds it took. A rule that refuses a token is broken for good."""
    if supply.is_broken:
        return 0.0
    started = time.perf_counter()
    try:
        accepted = all(supply.rule.accept(token) for token in tokens)
    except RuntimeError:
        logger.exception("a grammar failed")
        accepted = False
    if not accepted:
        logger.error("a generated token was outside of its grammar's mask")
        supply.is_broken = True
    return time.perf_counter() - started


def _fill(supply: Supply, row: MaskRow) -> float:
    """The seconds it took. All zero, which fails the request, for a broken rule; the stop tokens
    where it is complete."""
    row.fill(0)
    if supply.is_broken:
        return 0.0
    if supply.rule.is_complete:
        row |= supply.stop_mask.view(np.int32)
        return 0.0
    started = time.perf_counter()
    try:
        supply.rule.fill(row)
    except RuntimeError:
        logger.exception("a grammar failed")
        supply.is_broken = True
        row.fill(0)
    return time.perf_counter() - started


def _set(supply: Supply, num_seen: int, row: MaskRow) -> None:
    mask = row.view(np.uint32)
    finished = bool(mask.any()) and not bool((mask & ~supply.stop_mask).any())
    supply.constraint.set_mask(num_seen, mask, finished)

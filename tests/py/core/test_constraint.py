"""Masks from Python: the constrained request follows them, the others do not wait."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from core.core_engines import VOCAB, drain, greedy, null_engine, null_token

from dlcore import _core

STOP = 1
WORDS = -(-VOCAB // 32)


def mask_of(*tokens: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    mask = np.zeros(WORDS, np.uint32)
    for token in tokens:
        mask[token // 32] |= np.uint32(1 << (token % 32))
    return mask


def test_a_thread_that_answers_the_queue_steers_the_text() -> None:
    """The grammar: token n must be 100 + n."""
    queue = _core.ConstraintQueue()
    constraint = _core.TokenConstraint(queue, 42, VOCAB)
    stop = threading.Event()
    seen: list[int] = []

    def answer() -> None:
        assert constraint.set_mask(0, mask_of(100))
        while not stop.is_set():
            for key, num_seen, tokens in queue.poll(0.02):
                assert key == 42
                seen.extend(tokens)
                assert constraint.set_mask(num_seen, mask_of(100 + num_seen))

    thread = threading.Thread(target=answer)
    with null_engine() as engine:
        thread.start()
        engine.submit(1, [1, 2], greedy(20), constraint=constraint)
        tokens = drain(engine, 1)[1][0]
        stop.set()
        thread.join()
    assert tokens == [100 + n for n in range(20)]
    assert seen == tokens[:-1]  # nothing follows the last


def test_free_requests_do_not_wait_and_the_constrained_one_wakes() -> None:
    queue = _core.ConstraintQueue()
    constraint = _core.TokenConstraint(queue, 1, VOCAB)
    with null_engine() as engine:
        engine.submit(1, [1], greedy(1), constraint=constraint)
        engine.submit(2, [1], greedy(200))
        assert drain(engine, 1)[2][0] == [null_token(p) for p in range(1, 201)]
        time.sleep(0.25)  # the loop sleeps its longest
        start = time.monotonic()
        assert constraint.set_mask(0, mask_of(7))
        assert drain(engine, 1)[1][0] == [7]
        assert time.monotonic() - start < 0.09, "woken, not found by a re-check"


def test_only_the_mask_that_is_waited_for_is_taken() -> None:
    constraint = _core.TokenConstraint(_core.ConstraintQueue(), 1, VOCAB)
    assert not constraint.set_mask(1, mask_of(1))
    assert constraint.set_mask(0, mask_of(1))
    assert constraint.ready
    assert not constraint.set_mask(0, mask_of(2))
    with pytest.raises(ValueError, match=f"{WORDS} uint32 words"):
        constraint.set_mask(0, np.zeros(WORDS + 1, np.uint32))
    with pytest.raises(TypeError):
        constraint.set_mask(0, np.zeros(WORDS, np.int64))  # type: ignore[arg-type]


def test_a_finished_rule_ends_the_request() -> None:
    constraint = _core.TokenConstraint(_core.ConstraintQueue(), 1, VOCAB)
    with null_engine() as engine:
        assert constraint.set_mask(0, mask_of(7))
        engine.submit(1, [1], greedy(50), constraint=constraint)
        deadline = time.monotonic() + 10
        while constraint.num_tokens_seen < 1:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert constraint.set_mask(1, mask_of(), finished=True)
        assert drain(engine, 1)[1] == ([7], STOP, "")


def test_a_constraint_outlives_its_engine() -> None:
    constraint = _core.TokenConstraint(_core.ConstraintQueue(), 1, VOCAB)
    with null_engine() as engine:
        engine.submit(1, [1], greedy(5), constraint=constraint)
    del engine
    assert constraint.set_mask(0, mask_of(7))

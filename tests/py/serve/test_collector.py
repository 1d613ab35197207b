"""rare_full_collections: what it changes while it lasts, and that nothing of it stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dlcore.serve.collector import RARELY, rare_full_collections


@pytest.fixture(autouse=True)
def _default_thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


@contextmanager
def nothing_to_walk() -> Iterator[None]:
    """Python puts a full collection off until a quarter of what it walks is new: whatever other
    tests left in this process does not count."""
    gc.freeze()
    gc.collect()
    try:
        yield
    finally:
        gc.unfreeze()


def num_full_collections_of(num_objects: int) -> int:
    """While so many objects are made that stay."""
    before = gc.get_stats()[2]["collections"]
    kept = [[i] for i in range(num_objects)]
    assert len(kept) == num_objects
    return int(gc.get_stats()[2]["collections"]) - int(before)


def test_objects_that_cause_several_full_collections_by_default_cause_none() -> None:
    num_objects = 700 * 10 * RARELY // 2
    with nothing_to_walk():
        with_default = num_full_collections_of(num_objects)
    with rare_full_collections():
        assert num_full_collections_of(num_objects) == 0
    assert with_default > 0


def test_what_was_there_before_is_not_walked_and_is_given_back() -> None:
    with rare_full_collections():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == (700, 10, 10)


def test_it_ends_with_an_exception_as_without() -> None:
    with pytest.raises(RuntimeError), rare_full_collections():
        raise RuntimeError
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, (700, 10, 10))


def test_cycles_still_go_in_time() -> None:
    class Node:
        other: Node

    def cycle() -> None:
        a, b = Node(), Node()
        a.other, b.other = b, a

    with rare_full_collections():
        before = sum(isinstance(o, Node) for o in gc.get_objects())
        for _ in range(2000):
            cycle()
        left = sum(isinstance(o, Node) for o in gc.get_objects())
    assert before == 0
    assert left < 2000

"""What a poll gives: arrays without copies, rows at a price a front end can pay."""

from __future__ import annotations

import time

import numpy as np
import pytest
from core.core_engines import greedy, null_engine

from dlcore import _core


def one_batch(num_rows: int, **params: int) -> _core.OutputBatch:
    """A batch with a row for each of `num_rows` requests, all finished."""
    with null_engine(max_num_batched_tokens=2048, max_num_seqs=max(num_rows, 1)) as engine:
        for request_id in range(num_rows):
            engine.submit(request_id, [1, 2], greedy(3, **params))
        deadline = time.monotonic() + 10
        while engine.stats()["num_finished"] < num_rows:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        batch = engine.poll(1.0)
    assert batch is not None
    return batch


def test_arrays_and_rows_tell_the_same() -> None:
    batch = one_batch(5)
    assert len(batch) == 5
    for i, (request_id, tokens, reason, stop_token, cached) in enumerate(batch.rows()):
        begin, end = batch.token_offsets[i : i + 2]
        assert batch.token_ids[begin:end].tolist() == tokens
        assert (request_id, reason) == (batch.request_ids[i], batch.finish_reasons[i])
        assert (stop_token, cached) == (batch.stop_tokens[i], batch.cached_tokens[i])
        assert len(tokens) == 3


def test_arrays_are_views_that_keep_the_batch_alive() -> None:
    batch = one_batch(3)
    ids, again = batch.token_ids, batch.token_ids
    assert np.shares_memory(ids, again)
    assert not ids.flags.writeable
    assert ids.dtype == np.int32
    assert batch.request_ids.dtype == np.uint64
    before = ids.tolist()
    del batch, again
    assert ids.tolist() == before


def test_logprobs_come_per_token() -> None:
    batch = one_batch(2, logprobs=2, prompt_logprobs=1)
    for i in range(2):
        logprobs = batch.logprobs(i)
        assert len(logprobs) == 3
        for logprob, rank, top_ids, top_logprobs in logprobs:
            assert logprob == pytest.approx(-np.log(1000), rel=1e-5)
            assert rank == 1
            assert len(top_ids) == len(top_logprobs) == 2
        assert len(batch.prompt_logprobs(i)) == 1
    with pytest.raises(IndexError, match="row 2"):
        batch.logprobs(2)


def test_reading_256_rows_is_cheap() -> None:
    batch = one_batch(256)

    def read() -> int:
        return sum(len(tokens) for _, tokens, _, _, _ in batch.rows())

    times = []
    for _ in range(200):
        start = time.perf_counter()
        assert read() == 768
        times.append(time.perf_counter() - start)
    # A bound far above what it costs (some 20 us), so that only a change of kind fails.
    assert min(times) < 500e-6

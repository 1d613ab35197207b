"""The laws of the seam: native steps need no Python, and errors say what to change."""

from __future__ import annotations

import asyncio
import ctypes
import math
import threading
import time

import numpy as np
import pytest
from core.core_engines import drain, greedy, null_engine, null_token, options

from dlcore import _core

LENGTH, ABORT, ERROR = 2, 3, 4


def hold_the_gil(microseconds: int) -> None:
    ctypes.PyDLL(None).usleep(microseconds)  # PyDLL, unlike CDLL, keeps the GIL


def test_native_steps_go_on_while_the_gil_is_held() -> None:
    """Those in flight would end in any case: two each time. The rest takes no GIL to begin; how
    often it has to be held until there are enough depends on the machine's other work."""
    while_held = 0
    with null_engine(null_step_us=200) as engine:
        for request_id in range(16):
            engine.submit(request_id, [1, 2, 3], greedy(4000))
        assert engine.poll(5.0) is not None
        for _ in range(20):
            before = engine.stats()["num_steps"]
            hold_the_gil(200_000)
            while_held += engine.stats()["num_steps"] - before
            if while_held > 300:
                break
    assert while_held > 300


def test_a_held_gil_stops_no_thread_but_pythons() -> None:
    """The check of the check: a Python thread makes no progress in the same time."""
    ticks = 0
    stop = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    time.sleep(0.01)
    before = ticks
    hold_the_gil(200_000)
    after = ticks
    stop.set()
    thread.join()
    assert after - before <= 2


@pytest.mark.parametrize(
    "prompt", [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3], np.int32), np.array([1, 2, 3], np.int64)]
)
def test_prompts_come_as_arrays_or_sequences(prompt: object) -> None:
    with null_engine() as engine:
        engine.submit(7, prompt, greedy(5))  # type: ignore[arg-type]
        tokens, reason, _ = drain(engine, 1)[7]
    assert tokens == [null_token(p) for p in range(3, 8)]
    assert reason == LENGTH


def test_a_strided_array_is_read_as_numpy_reads_it() -> None:
    with null_engine() as engine:
        engine.submit(1, np.array([1, 9999, 2, 9999], np.int32)[::2], greedy(1))
        assert drain(engine, 1)[1][1] == LENGTH


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt"),
        ([1, 1000], "1000"),
        ([-1], "-1"),
        ([1, "x"], r"prompt_token_ids\[1\]"),
        ([1.5], r"prompt_token_ids\[0\]"),
        ([2**40], r"prompt_token_ids\[0\]"),
        ([2**80], r"prompt_token_ids\[0\]"),
        (np.array([2**40]), r"prompt_token_ids\[0\]"),
        (5, "prompt_token_ids"),
        ([1] * 4096, "max_model_len"),
    ],
)
def test_a_bad_prompt_is_a_value_error_naming_it(prompt: object, message: str) -> None:
    with null_engine() as engine, pytest.raises(ValueError, match=message):
        engine.submit(1, prompt, greedy(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", math.nan),
        ("min_p", 1.5),
        ("top_k", -1),
        ("presence_penalty", 3.0),
        ("frequency_penalty", math.nan),
        ("repetition_penalty", 0.0),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", 1000),
        ("prompt_logprobs", -2),
        ("logit_bias", [(1000, 1.0)]),
        ("logit_bias", [(1, math.nan)]),
        ("logit_bias", [(1, 0.5)] * 2000),
        ("stop_token_ids", [-5]),
        ("allowed_token_ids", [5000]),
        ("bad_words", [[]]),
    ],
)
def test_a_bad_parameter_is_a_value_error_naming_it(field: str, value: object) -> None:
    params = _core.SamplingParams()
    setattr(params, field, value)
    with null_engine() as engine, pytest.raises(ValueError, match=field):
        engine.submit(1, [1], params)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_num_seqs", 0),
        ("block_size", -1),
        ("vocab_size", 0),
        ("num_kv_blocks", 0),
        ("max_model_len", 1),
        ("cache_groups", [("ring", 1, 1, 0)]),
        ("max_waiting_requests", -1),
        ("watchdog_timeout_s", math.nan),
        ("eos_token_ids", [4000]),
    ],
)
def test_a_bad_option_is_a_value_error_naming_it(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        options(**{field: value})


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda' or 'null'"):
        _core.Engine(options(), device="tpu")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(_core.EngineUnavailable, match=r"libcuda\.so\.1"):
            _core.Engine(options(), device="cuda")
    else:
        with pytest.raises(_core.EngineUnavailable, match="device_index 4096"):
            _core.Engine(options(), device="cuda", device_index=4096)


def test_starting_without_a_model_says_so() -> None:
    engine = _core.Engine(options(), device="cpu")
    with pytest.raises(ValueError, match="no executable"):
        engine.start()


def test_submit_many_takes_the_arguments_of_submit() -> None:
    with null_engine() as engine:
        params = greedy(4)
        engine.submit_many([(1, [1], params), (2, [1, 2], params, 5), (3, [1], params, 0, b"salt")])
        assert sorted(drain(engine, 3)) == [1, 2, 3]
        with pytest.raises(ValueError, match="request_id, prompt_token_ids, params"):
            engine.submit_many([(1, [1])])


def test_an_abort_ends_a_request_once() -> None:
    with null_engine(null_step_us=1000) as engine:
        engine.submit(1, [1], greedy(4000))
        engine.abort([1, 1, 12345])
        tokens, reason, _ = drain(engine, 1)[1]
        assert reason == ABORT
        assert len(tokens) < 4000
        assert engine.poll(0.05) is None


def test_a_full_queue_is_an_error_of_its_own() -> None:
    with null_engine(null_step_us=50_000, max_num_seqs=1, max_waiting_requests=2) as engine:
        requests = [(request_id, [1], greedy(100)) for request_id in range(10)]
        with pytest.raises(_core.QueueFull, match="max_waiting_requests"):
            engine.submit_many(requests)
        assert issubclass(_core.QueueFull, RuntimeError)


def test_after_stop_everything_has_ended() -> None:
    engine = _core.Engine(options(), device="null", null_step_us=1000)
    engine.start()
    engine.submit(1, [1], greedy(4000))
    engine.stop()
    engine.stop()
    assert drain(engine, 1)[1][1] == ABORT
    assert engine.poll(10.0) is None
    with pytest.raises(_core.EngineUnavailable, match="stopped"):
        engine.submit(2, [1], greedy(1))


async def test_output_fd_wakes_an_event_loop() -> None:
    loop = asyncio.get_running_loop()
    got: asyncio.Queue[_core.OutputBatch] = asyncio.Queue()
    with null_engine() as engine:

        def readable() -> None:
            batch = engine.poll(0)
            if batch is not None:
                got.put_nowait(batch)

        loop.add_reader(engine.output_fd(), readable)
        engine.submit(1, [1], greedy(30))
        tokens: list[int] = []
        while len(tokens) < 30:
            batch = await asyncio.wait_for(got.get(), 10)
            tokens += batch.token_ids.tolist()
        loop.remove_reader(engine.output_fd())
    assert tokens == [null_token(p) for p in range(1, 31)]


def test_poll_releases_the_gil_while_it_waits() -> None:
    with null_engine() as engine:
        waiter = threading.Thread(target=engine.poll, args=(0.5,))
        start = time.monotonic()
        waiter.start()
        for _ in range(100):
            time.sleep(0)
        assert time.monotonic() - start < 0.4
        waiter.join()


def test_stats_and_debug_string_tell_the_state() -> None:
    with null_engine() as engine:
        engine.submit(1, [1] * 40, greedy(20))
        drain(engine, 1)
        deadline = time.monotonic() + 5
        while engine.stats()["num_running"] and time.monotonic() < deadline:
            time.sleep(0.001)
        stats = engine.stats()
        assert stats["num_prompt_tokens"] == 40
        assert stats["num_generated_tokens"] == 20
        assert stats["num_finished"] == 1
        assert stats["healthy"] == 1
        assert "engine:" in engine.debug_string()

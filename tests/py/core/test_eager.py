"""A Python callable as the model: what it is given, how it fails, when it is let go."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref

import numpy as np
import numpy.typing as npt
import pytest
from core.core_engines import drain, greedy, options

from dlcore import _core

ERROR = 4


class Model:
    """Answers every sampled row with the row's context length."""

    def __init__(self) -> None:
        self.options = options()
        self.keys: list[_core.StepKey] = []
        self.engine: _core.Engine | None = None

    def view(self, arena: int, offset: int, rows: int) -> npt.NDArray[np.int32]:
        array = (ctypes.c_int32 * rows).from_address(arena + offset)
        return np.frombuffer(array, np.int32)

    def step(self, key: _core.StepKey) -> None:
        assert self.engine is not None
        self.keys.append(key)
        layout = _core.StepLayout(self.options, key)
        inputs = {name: (offset, shape) for name, _, offset, shape in layout.inputs()}
        outputs = {name: (offset, shape) for name, _, offset, shape in layout.outputs()}
        offset, (rows,) = inputs["seq_lens"]
        lens = self.view(self.engine.input_arena, offset, rows)
        offset, (rows,) = outputs["sampled_tokens"]
        self.view(self.engine.output_arena, offset, rows)[:] = lens


def eager_engine(model: Model) -> _core.Engine:
    engine = _core.Engine(model.options, device="cpu")
    model.engine = engine
    engine.set_eager(model.step)
    engine.start()
    return engine


def test_a_callable_runs_every_step_with_exact_counts() -> None:
    model = Model()
    engine = eager_engine(model)
    engine.submit(1, [5, 6, 7], greedy(4))
    assert drain(engine, 1)[1][0] == [3, 4, 5, 6]
    engine.stop()
    assert [k.num_tokens for k in model.keys] == [3, 1, 1, 1]
    assert [k.kind for k in model.keys] == ["mixed", "decode", "decode", "decode"]
    assert all(k.num_seqs == 1 and k.sampler == "greedy" for k in model.keys)


def test_an_exception_fails_every_request_with_its_text(capfd: pytest.CaptureFixture[str]) -> None:
    engine = _core.Engine(options(), device="cpu")

    def step(key: _core.StepKey) -> None:
        raise KeyError(f"no kernel for {key.num_tokens}")

    engine.set_eager(step)
    engine.start()
    engine.submit(1, [1, 2], greedy(4))
    _, reason, error = drain(engine, 1)[1]
    assert reason == ERROR
    assert "KeyError" in error
    assert "no kernel for 2" in error
    assert engine.stats()["healthy"] == 0
    with pytest.raises(_core.EngineUnavailable, match="no kernel for 2"):
        engine.submit(2, [1], greedy(1))
    engine.stop()
    assert "Traceback" in capfd.readouterr().err


def test_stop_drops_the_callable() -> None:
    model = Model()
    engine = eager_engine(model)
    gone = weakref.ref(model)
    engine.stop()
    model.engine = None
    del model
    assert gone() is None


def test_a_cycle_through_the_callable_is_collected() -> None:
    model = Model()
    eager_engine(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from core.core_engines import drain, greedy, options
from core.test_eager import Model, eager_engine
model = Model()
engine = eager_engine(model)
engine.submit(1, [1], greedy(3000))
engine.poll(1.0)
{end}
"""


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "del engine", "engine.stop()"])
def test_the_interpreter_ends_cleanly_whatever_is_running(end: str) -> None:
    script = SCRIPT.format(path=sys.path, end=end)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "leak" not in done.stderr
    assert done.stderr == ""

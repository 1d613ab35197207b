"""Who captures on which stream; no GPU is asked."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from dlcore import capture
from dlcore.capture import StepCapturer


class Stream:
    """For torch.cuda.Stream."""


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(capture, "_spare_streams", defaultdict(list))


def capturer() -> StepCapturer:
    nothing = dict.fromkeys(("model", "arenas", "state", "rows", "row_fields", "report"))
    return StepCapturer(**nothing, pool=None)  # type: ignore[arg-type]


def test_engines_at_work_have_streams_of_their_own() -> None:
    engines = [capturer() for _ in range(5)]
    assert len({id(engine.stream) for engine in engines}) == 5


def test_the_stream_of_an_engine_that_is_gone_is_used_again_and_by_one_only() -> None:
    gone, at_work = capturer(), capturer()
    stream = gone.stream
    del gone
    first, second = capturer(), capturer()
    assert first.stream is stream
    assert len({id(engine.stream) for engine in (at_work, first, second)}) == 3


def test_a_stream_is_not_used_again_before_the_graphs_from_it_are_gone() -> None:
    seen: list[bool] = []

    class Graph:
        def __del__(self) -> None:
            seen.append(capturer().stream is stream)

    gone = capturer()
    stream = gone.stream
    gone.graphs.append(Graph())  # type: ignore[arg-type]
    del gone
    assert seen == [False]

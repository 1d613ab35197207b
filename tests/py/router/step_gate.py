"""Holds the steps of engines, or the layers of steps, so that a test sees what happens in the
middle of a prompt."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dlcore import runner
from dlcore.model_runner import EagerStep
from dlcore.ops.report_layer import HostReport

LONGEST_WAIT_S = 60.0  # longer than any test waits for what must happen meanwhile


class StepGate:
    """Closed: the engine waits before its next step, or before it tells of the next layer."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left: int | None = None  # steps that may pass; None = all

    def close_after(self, steps: int) -> None:
        with self._changed:
            self._left = steps

    def open(self) -> None:
        with self._changed:
            self._left = None
            self._changed.notify_all()

    def enter(self) -> None:
        with self._changed:
            if self._left is not None and self._left > 0:
                self._left -= 1
                return
            self._changed.wait_for(lambda: self._left is None, LONGEST_WAIT_S)


def gates_of_new_engines(monkeypatch: pytest.MonkeyPatch) -> list[StepGate]:
    """Grows by the gate of every engine built in this process from now on."""
    gates: list[StepGate] = []

    def gated(**parts: Any) -> Any:
        step, gate = EagerStep(**parts), StepGate()
        gates.append(gate)

        def run(key: Any) -> None:
            gate.enter()
            step(key)

        return run

    monkeypatch.setattr(runner, "EagerStep", gated)
    return gates


def layer_gates_of_new_engines(monkeypatch: pytest.MonkeyPatch) -> list[StepGate]:
    """Grows by the gate of every prefill engine built in this process from now on."""
    gates: list[StepGate] = []

    def gated(report: Any) -> HostReport:
        gate = StepGate()
        gates.append(gate)

        def tell(layers_done: int) -> None:
            gate.enter()
            report(layers_done)

        return HostReport(tell)

    monkeypatch.setattr(runner, "HostReport", gated)
    return gates

"""Short storms: nodes killed and frozen under streaming clients (tools/chaos.py, in full)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlcore.bundled_model import has_bundled_model

CHAOS = Path(__file__).resolve().parents[3] / "tools" / "chaos.py"
SHORT = ("--clients", "16", "--period", "4", "--max-tokens", "48", "--prompts", "16")

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not has_bundled_model(), reason="the bundled model is not installed"),
]


def storm(*options: str) -> dict[str, Any]:
    """The figures of a storm that broke something and cost no answer."""
    done = subprocess.run(
        [sys.executable, str(CHAOS), *SHORT, *options],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    # A storm that broke nothing, or interrupted nobody, shows nothing.
    assert sum(figures["killed"].values()) >= 3
    assert sum(figures["frozen"].values()) >= 1
    assert figures["failovers"] >= 1
    assert figures["answers"] >= 50
    return figures


def test_no_answer_fails_or_differs_while_nodes_die_and_freeze() -> None:
    storm("--seconds", "22")


def test_prefill_and_decode_nodes_die_without_a_trace() -> None:
    figures = storm("--seconds", "24", "--prefill", "2", "--decode", "2")
    assert set(figures["killed"]) == {"prefill", "decode"}
    assert figures["kv_pulls"] >= 50
    assert figures["blocks_not_back"] == []

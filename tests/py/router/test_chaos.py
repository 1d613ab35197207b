"""A short storm: nodes killed and frozen under streaming clients (tools/chaos.py, in full)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlcore.bundled_model import has_bundled_model

CHAOS = Path(__file__).resolve().parents[3] / "tools" / "chaos.py"


@pytest.mark.timeout(240)
@pytest.mark.skipif(not has_bundled_model(), reason="the bundled model is not installed")
def test_no_answer_fails_or_differs_while_nodes_die_and_freeze() -> None:
    options = ["--seconds", "25", "--clients", "16", "--period", "4", "--max-tokens", "48"]
    options += ["--prompts", "16"]
    done = subprocess.run(
        [sys.executable, str(CHAOS), *options],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    # A storm that broke nothing, or interrupted nobody, shows nothing.
    assert figures["killed"] >= 2
    assert figures["frozen"] >= 1
    assert figures["failovers"] >= 1
    assert figures["answers"] >= 50

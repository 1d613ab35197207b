"""Requests generated from /openapi.json, valid and broken: never a 5xx, only documented codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_generated_requests_get_documented_answers() -> None:
    """The short form of `python tools/fuzz_http.py`, which tries 10,000 cases and more.

    Without its coverage phase, which takes a minute whatever the number of examples.
    """
    tool = [sys.executable, str(ROOT / "tools" / "fuzz_http.py"), "--phases", "fuzzing"]
    done = subprocess.run(
        [*tool, "--cases", "500", "--examples", "25"],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]

"""Some thousand hostile messages at every port of a whole system (tools/fuzz_ports.py, in full)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlcore.bundled_model import has_bundled_model

FUZZER = Path(__file__).resolve().parents[3] / "tools" / "fuzz_ports.py"
LANGUAGES = ("http", "grpc", "kv", "intruder", "zmtp")


@pytest.mark.timeout(240)
@pytest.mark.skipif(not has_bundled_model(), reason="the bundled model is not installed")
def test_no_message_to_any_port_harms_a_system() -> None:
    done = subprocess.run(
        [sys.executable, str(FUZZER), "--messages", "300"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["findings"] == []
    for language in LANGUAGES:
        sent = sum(n for name, n in report["messages"].items() if f"({language})" in name)
        assert sent >= 300, language
    intruder = next(a for name, a in report["answers"].items() if "(intruder)" in name)
    assert intruder["granted"] > 0  # its own lease's bytes come
    assert intruder["refused"] > 0

"""The table of tools/gpu_check.sh: what meets its target is called met, what does not is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "performance_table.py"
OFFLINE = {
    "start": 15.0, "tpot_b1": 0.80, "tpot_b8": 0.95, "tpot_b64": 1.7, "tpot_b256": 3.8,
    "ttft": 14.0, "prefill": 400_000.0, "mixed": 27_500.0,
}  # fmt: skip
ONLINE = {"concurrency": 256, "failed": 0, "out_tok_s": 24_000, "ttft_p50": 250.0}
ONLINE |= {"tpot_p50": 10.0, "itl_p99": 25.0}


def tables(folder: Path, offline: dict[str, float], *log: str) -> dict[str, list[str]]:
    """The cells of each row of Qwen3-0.6B's, by its first."""
    figures = [{"name": name, "value": value} for name, value in offline.items()]
    (folder / "offline-qwen3-0.6b.json").write_text(json.dumps({"figures": figures}))
    (folder / "online-qwen3-0.6b.log").write_text("\n".join(log))
    command = [sys.executable, str(SCRIPT), str(folder)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = printed.split("qwen3-8b")[0].splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "|" in line]
    return {row[0]: row for row in rows}


def row(**changes: float) -> str:
    return "ROW " + json.dumps(ONLINE | changes)


def test_what_just_reaches_its_target_is_met(tmp_path: Path) -> None:
    rows = tables(tmp_path, OFFLINE, "ready after 20 s", row())
    assert {rows[name][-1] for name in (*OFFLINE, "ready", "c=256")} == {"yes"}
    assert rows["tpot_b1"] == ["tpot_b1", "0.8", "1.59", "0.8", "0.39", "0.50", "2.05", "yes"]


@pytest.mark.parametrize("name", [*OFFLINE, "ready"])
def test_a_figure_beyond_its_target_is_missed_in_its_direction(tmp_path: Path, name: str) -> None:
    worse = 0.9 if name in ("prefill", "mixed") else 1.1
    figures = {n: v * (worse if n == name else 1) for n, v in OFFLINE.items()}
    rows = tables(tmp_path, figures, f"ready after {22 if name == 'ready' else 20} s")
    assert rows[name][-1] == "no, by 10.0%"
    assert {rows[n][-1] for n in (*OFFLINE, "ready") if n != name} == {"yes"}


def test_under_load_every_target_of_a_row_counts(tmp_path: Path) -> None:
    rows = tables(tmp_path, {}, row(tpot_p50=11.0, out_tok_s=21_600))
    assert rows["c=256"][-1] == "no, out_tok_s by 10.0%, tpot_p50 by 10.0%"


def test_what_was_not_measured_or_failed_is_not_met(tmp_path: Path) -> None:
    rows = tables(tmp_path, {"start": 1.0}, row(failed=3))
    assert rows["start"][-1] == "yes"
    assert {rows[name][-1] for name in ("ttft", "ready", "c=64")} == {"not measured"}
    assert rows["c=256"][-1] == "3 requests failed"


def test_rows_of_servers_with_flags_follow_the_others(tmp_path: Path) -> None:
    (tmp_path / "online-qwen3-0.6b--max-num-seqs-216.log").write_text(row(ttft_p50=500.0))
    rows = tables(tmp_path, {}, row())
    assert rows["c=256"][-1] == "yes"
    assert rows["c=256 --max-num-seqs-216"][-1] == "no, ttft_p50 by 100.0%"

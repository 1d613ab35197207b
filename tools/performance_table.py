"""Prints what tools/gpu_check.sh measured beside vLLM's figures, targets and floors (baselines.py).

    python tools/performance_table.py FOLDER

FOLDER holds offline-SHAPE.json (of `dlcore bench`) and online-SHAPE.log (lines of tools/loadgen.py
and how long the server took to be ready); what is not there is said to be missing. Rows of
online-SHAPE--FLAGS.log, of a server with these flags, follow. The tables are Markdown, as in
docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from baselines import HIGHER_IS_BETTER, LATENCIES, OFFLINE, ONLINE, READY, Baseline, OnlineBaseline

READY_LINE = re.compile(r"^ready after (\d+) s$", re.MULTILINE)
ROW_LINE = re.compile(r"^ROW (\{.*\})$", re.MULTILINE)


def number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}".rstrip("0").rstrip(".")


def shortfall(name: str, value: float, target: float) -> float:
    """By which share of the target the value misses it; negative where it is better."""
    return 1 - value / target if name in HIGHER_IS_BETTER else value / target - 1


def verdict(missed: Mapping[str, float]) -> str:
    """missed: shortfalls by name."""
    misses = [
        f"{name} by {100 * by:.1f}%" if len(missed) > 1 else f"by {100 * by:.1f}%"
        for name, by in missed.items()
        if by > 0
    ]
    return "no, " + ", ".join(misses) if misses else "yes"


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _against(name: str, value: float | None, baseline: Baseline) -> list[str]:
    known = [number(baseline.vllm), number(baseline.target)]
    floor = "" if baseline.floor is None else number(baseline.floor)
    if value is None:
        return [name, "missing", *known, floor, "", "", "not measured"]
    of_floor = "" if baseline.floor is None else f"{value / baseline.floor:.2f}"
    met = verdict({name: shortfall(name, value, baseline.target)})
    return [name, number(value), *known, floor, f"{value / baseline.vllm:.2f}", of_floor, met]


def offline_rows(shape: str, folder: Path) -> Iterator[list[str]]:
    file = folder / f"offline-{shape}.json"
    figures = json.loads(file.read_text())["figures"] if file.exists() else []
    values = {figure["name"]: figure["value"] for figure in figures}
    for name, baseline in OFFLINE[shape].items():
        yield _against(name, values.get(name), baseline)
    ready = READY_LINE.findall(_log(shape, folder))
    yield _against("ready", float(ready[-1]) if ready else None, READY[shape])


def online_rows(shape: str, folder: Path) -> Iterator[list[str]]:
    rows = _loads(_log(shape, folder))
    for clients, baseline in ONLINE[shape].items():
        yield _load_row(f"c={clients}", rows.get(clients), baseline)
    for file in sorted(folder.glob(f"online-{shape}--*.log")):
        flags = file.stem.removeprefix(f"online-{shape}")
        for clients, row in _loads(file.read_text()).items():
            yield _load_row(f"c={clients} {flags}", row, ONLINE[shape][clients])


def _loads(log: str) -> dict[int, dict[str, Any]]:
    """The rows of tools/loadgen.py by their numbers of clients."""
    parsed: list[dict[str, Any]] = [json.loads(row) for row in ROW_LINE.findall(log)]
    return {row["concurrency"]: row for row in parsed}


def _load_row(label: str, row: Mapping[str, Any] | None, baseline: OnlineBaseline) -> list[str]:
    targets = ", ".join(number(t) for t in baseline.targets.values())
    known = [number(baseline.vllm), targets]
    if row is None or row["failed"]:
        why = "not measured" if row is None else f"{row['failed']} requests failed"
        return [label, "missing", "", "", "", *known, "", why]
    missed = {name: shortfall(name, row[name], t) for name, t in baseline.targets.items()}
    shown = [number(row[name]) for name in ("out_tok_s", *LATENCIES)]
    return [label, *shown, *known, f"{row['out_tok_s'] / baseline.vllm:.2f}", verdict(missed)]


def _log(shape: str, folder: Path) -> str:
    file = folder / f"online-{shape}.log"
    return file.read_text() if file.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    offline = ("figure", "dlcore", "vLLM", "target", "floor", "/ vLLM", "/ floor", "met")
    online = ("clients", "tokens/s", "TTFT", "TPOT", "ITL p99", "vLLM", "target", "/ vLLM", "met")
    for shape in OFFLINE:
        print(f"\n{shape}, offline\n\n{table(offline, offline_rows(shape, folder))}")
        print(f"\n{shape}, over HTTP\n\n{table(online, online_rows(shape, folder))}")


if __name__ == "__main__":
    main()

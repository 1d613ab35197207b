"""Latency and throughput as pictures. The only file that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

Points = Sequence[tuple[int, float]]


def plot_latency(path: Path, x_label: str, curves: dict[str, Points]) -> None:
    """Milliseconds over batch size or number of clients."""
    _plot(path, x_label, "milliseconds", curves)


def plot_throughput(path: Path, x_label: str, curves: dict[str, Points]) -> None:
    _plot(path, x_label, "output tokens per second", curves)


def _plot(path: Path, x_label: str, y_label: str, curves: dict[str, Points]) -> None:
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for label, points in curves.items():
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, marker="o", label=label)
        axes.set_xticks(xs, [str(x) for x in xs])
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

"""One /metrics page for many front ends: whichever is asked answers for all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from dlcore.frontends.remote_core import RemoteCore
from dlcore.serve.metrics import Metrics

INTERVAL_S = 0.5


def share_metrics(
    loop: asyncio.AbstractEventLoop, metrics: Metrics, core: RemoteCore, worker: int
) -> None:
    """Publishes this process's metrics, and adds the others' to those it shows."""

    def publish() -> None:
        core.publish(samples(metrics.render_own()))
        loop.call_later(INTERVAL_S, publish)

    def sum_of_all(own: bytes) -> bytes:
        others = [taken for other, taken in core.snapshots.items() if other != worker]
        return summed(own, others)

    metrics.merge = sum_of_all
    publish()


def samples(page: bytes) -> dict[str, float]:
    """Name and labels -> value, of a page in Prometheus' text format."""
    lines = (line for line in page.decode().splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def summed(own: bytes, others: Iterable[Mapping[str, float]]) -> bytes:
    """`own` with every sample replaced by its sum over all front ends.

    A front end's metrics are counters and histograms, so sums are what they mean; what only
    another one has seen (a rare status, say) is appended under the same family's name.
    """
    totals = samples(own)
    for taken in others:
        for name, value in taken.items():
            totals[name] = totals.get(name, 0.0) + value
    lines = []
    for line in own.decode().splitlines():
        name = line.rpartition(" ")[0]
        lines.append(line if line.startswith("#") else f"{name} {totals.pop(name)}")
    lines += [f"{name} {value}" for name, value in totals.items()]
    return ("\n".join(lines) + "\n").encode()

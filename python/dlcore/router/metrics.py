"""The router's own Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dlcore.router.backend import State
from dlcore.router.pool import BackendPool

PREFIX = "dlcore_router:"


class RouterMetrics:
    def __init__(self, pool: BackendPool) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Answers to clients.", ["path", "status"])
        self.attempts = self._counter("attempts", "Requests sent to a node.", ["backend"])
        self.failures = self._counter("attempt_failures", "Attempts that failed.", ["backend"])
        self.failovers = self._counter("stream_failovers", "Streams that went on elsewhere.", [])
        self.broken_streams = self._counter("broken_streams", "Streams that ended in an error.", [])
        self.latency = Histogram(
            f"{PREFIX}request_seconds",
            "Arrival to first byte of a stream, or whole answer.",
            ["path"],
            registry=self.registry,
        )
        self.registry.register(_PoolCollector(pool))

    def _counter(self, name: str, help: str, labels: list[str]) -> Counter:
        return Counter(PREFIX + name, help, labels, registry=self.registry)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _PoolCollector(Collector):
    def __init__(self, pool: BackendPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(f"{PREFIX}backend_up", "1 = takes requests.", labels=["backend"])
        running = GaugeMetricFamily(
            f"{PREFIX}backend_running", "Requests open at a node.", labels=["backend"]
        )
        for backend in self._pool:
            up.add_metric([backend.url], float(backend.state is State.UP))
            running.add_metric([backend.url], backend.running)
        yield up
        yield running

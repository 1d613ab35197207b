"""Prometheus metrics, under the names dashboards for LLM servers already look for.

vLLM's `vllm:NAME` is `dlcore:NAME` here, with the same labels and meanings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dlcore.serve.histogram import Histogram

PREFIX = "dlcore:"

_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20,
         40, 80, 160, 640, 2560)  # fmt: skip
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
              1, 2.5, 5, 7.5, 10, 20, 40, 80)  # fmt: skip
_REQUEST = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120,
            240, 480, 960, 1920, 7680)  # fmt: skip
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000,
           200000, 500000, 1000000)  # fmt: skip
_COUNT = (1, 2, 5, 10, 20)

# Metric name, help, name in EngineStats.
_ENGINE_GAUGES = (
    ("num_requests_running", "Requests in the running batch.", "num_running"),
    ("num_requests_waiting", "Requests waiting to be scheduled.", "num_waiting"),
    ("kv_cache_free_blocks", "KV blocks free.", "num_free_blocks"),
    ("kv_cache_cached_blocks", "KV blocks that only the prefix cache holds.", "num_cached_blocks"),
    ("kv_cache_used_blocks", "KV blocks of requests and leases.", "num_referenced_blocks"),
    ("kv_cache_total_blocks", "KV blocks in all.", "num_kv_blocks"),
    ("kv_leases", "Prompts whose KV is promised to a decode node.", "num_kv_leases"),
    ("kv_pulls_running", "Requests whose KV is on its way here.", "num_migrating"),
)
_ENGINE_COUNTERS = (
    ("num_preemptions", "Requests preempted and recomputed.", "num_preemptions"),
    ("prompt_tokens", "Prompt tokens processed.", "num_prompt_tokens"),
    ("generation_tokens", "Tokens generated.", "num_generated_tokens"),
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", "num_prefix_queries"),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", "num_prefix_hits"),
    ("kv_pulls", "Prompts whose KV was asked of a prefill node.", "num_migrations"),
    ("kv_pull_failures", "Pulls that failed.", "num_failed_migrations"),
    ("kv_pull_aborts", "Pulls given up because their request ended.", "num_pulls_aborted"),
    ("kv_pulled_bytes", "KV pulled from prefill nodes.", "num_kv_bytes_pulled"),
    (
        "kv_pulled_early_bytes",
        "KV pulled while its prompt was still being computed.",
        "num_kv_bytes_pulled_early",
    ),
    ("kv_leases_granted", "Prompts whose KV was promised.", "num_leases_granted"),
    ("kv_leases_released", "Leases that their reader ended.", "num_leases_released"),
    ("kv_leases_aborted", "Leases that ended with their request.", "num_leases_aborted"),
    ("kv_leases_expired", "Leases that nobody ended in time.", "num_leases_expired"),
    ("kv_served_bytes", "KV read from this node.", "num_kv_bytes_served"),
    (
        "kv_served_early_bytes",
        "KV read while its prompt was still being computed.",
        "num_kv_bytes_served_early",
    ),
    ("engine_steps", "Steps of the engine loop.", "num_steps"),
    ("engine_step_cpu_seconds", "CPU time of planning and launching steps.", "step_cpu_seconds"),
    ("engine_device_wait_seconds", "Time waiting for the device.", "device_wait_seconds"),
)
_ENGINE_HISTOGRAMS = (
    ("request_queue_time_seconds", "Submission to first step.", "queue_time"),
    ("kv_pull_seconds", "From asking for a prompt's KV to having it.", "pull_time"),
)
# Why a reader was turned away: kv_counters.h.
_REFUSALS = ("key", "unknown", "ended", "outside")

EngineStats = Callable[[], Mapping[str, float]]


class Metrics:
    """All metrics of one server. Event-loop thread only."""

    def __init__(self, model_name: str, stats: EngineStats) -> None:
        self.registry = CollectorRegistry()
        self.labels = {"model_name": model_name, "engine": "0"}
        self.time_to_first_token = _histogram(
            "time_to_first_token_seconds", "Arrival to first token.", _TTFT
        )
        self.inter_token_latency = _histogram(
            "inter_token_latency_seconds", "Time between consecutive tokens.", _PER_TOKEN
        )
        self.time_per_output_token = _histogram(
            "request_time_per_output_token_seconds", "Mean of a request after the first token.",
            _PER_TOKEN,
        )  # fmt: skip
        self.e2e_latency = _histogram(
            "e2e_request_latency_seconds", "Arrival to last token.", _REQUEST
        )
        self.decode_time = _histogram(
            "request_decode_time_seconds", "First token to last token.", _REQUEST
        )
        self.prompt_size = _histogram("request_prompt_tokens", "Prompt length.", _TOKENS)
        self.output_size = _histogram("request_generation_tokens", "Output length.", _TOKENS)
        self.params_n = _histogram("request_params_n", "The n parameter.", _COUNT)
        self._finished = Counter(
            f"{PREFIX}request_success", "Finished requests by reason.",
            [*self.labels, "finished_reason"], registry=self.registry,
        )  # fmt: skip
        self._http = Counter(
            "http_requests", "HTTP responses.", ["method", "handler", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._grpc = Counter(
            "grpc_server_handled", "gRPC calls by status.",
            ["grpc_service", "grpc_method", "grpc_code"], registry=self.registry,
        )  # fmt: skip
        self.registry.register(_HistogramCollector(self._histograms(), self.labels))
        self.registry.register(_FormerName(self.inter_token_latency, self.labels))
        self._engine_registry = CollectorRegistry()
        self._engine_registry.register(_EngineCollector(stats, self.labels))
        # With several front ends: adds theirs to what this one counted.
        self.merge: Callable[[bytes], bytes] = lambda own: own

    def count_finished(self, reason: str) -> None:
        self._finished.labels(*self.labels.values(), reason).inc()

    def count_http(self, method: str, handler: str, status: int) -> None:
        self._http.labels(method, handler, str(status)).inc()

    def count_grpc(self, service: str, method: str, code: str) -> None:
        self._grpc.labels(service, method, code).inc()

    def render(self) -> bytes:
        return self.merge(self.render_own()) + generate_latest(self._engine_registry)

    def render_own(self) -> bytes:
        """What this process counted itself, without the engine's counters."""
        return generate_latest(self.registry)

    def _histograms(self) -> list[Histogram]:
        return [value for value in vars(self).values() if isinstance(value, Histogram)]


def _histogram(name: str, help: str, bounds: tuple[float, ...]) -> Histogram:
    return Histogram(PREFIX + name, help, bounds)


class _EngineCollector(Collector):
    """Reads the engine's counters when scraped, so that a request pays nothing for them."""

    def __init__(self, stats: EngineStats, labels: dict[str, str]) -> None:
        self._stats = stats
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        names, values = list(self._labels), list(self._labels.values())
        for name, help, key in _ENGINE_GAUGES:
            gauge = GaugeMetricFamily(PREFIX + name, help, labels=names)
            gauge.add_metric(values, stats.get(key, 0))
            yield gauge
        usage = GaugeMetricFamily(
            f"{PREFIX}kv_cache_usage_perc", "KV blocks in use, 1 = all.", labels=names
        )
        usage.add_metric(values, kv_usage(stats))
        yield usage
        for name, help, key in _ENGINE_COUNTERS:
            counter = CounterMetricFamily(PREFIX + name, help, labels=names)
            counter.add_metric(values, stats.get(key, 0))
            yield counter
        refused = CounterMetricFamily(
            f"{PREFIX}kv_refusals", "Readers of KV turned away.", labels=[*names, "reason"]
        )
        for reason in _REFUSALS:
            refused.add_metric([*values, reason], stats.get(f"num_kv_refused_{reason}", 0))
        yield refused
        for name, help, key in _ENGINE_HISTOGRAMS:
            yield core_histogram(stats, key, name, help).family(self._labels)


def core_histogram(stats: Mapping[str, float], key: str, name: str, help: str) -> Histogram:
    """A histogram of the core (time_histogram.h), which the stats hold as `key`_le_BOUND."""
    prefix = f"{key}_le_"
    counts = {
        float(bucket.removeprefix(prefix)): int(value)
        for bucket, value in stats.items()
        if bucket.startswith(prefix)
    }
    histogram = Histogram(PREFIX + name, help, sorted(b for b in counts if b != float("inf")))
    if counts:
        histogram.counts = [counts[bound] for bound in sorted(counts)]
    histogram.total = stats.get(f"{key}_seconds", 0.0)
    return histogram


class _HistogramCollector(Collector):
    def __init__(self, histograms: list[Histogram], labels: dict[str, str]) -> None:
        self._histograms = histograms
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for histogram in self._histograms:
            yield histogram.family(self._labels)


class _FormerName(Collector):
    """vLLM called the time between tokens `time_per_output_token_seconds`; dashboards still do."""

    def __init__(self, latency: Histogram, labels: dict[str, str]) -> None:
        self._latency = latency
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        family = self._latency.family(self._labels)
        former = HistogramMetricFamily(
            f"{PREFIX}time_per_output_token_seconds", family.documentation
        )
        for sample in family.samples:
            name = sample.name.replace(family.name, former.name)
            former.samples.append(sample._replace(name=name))
        yield former


def kv_usage(stats: Mapping[str, float]) -> float:
    """Share of the KV blocks that live requests hold; cached but unused blocks are free."""
    total = stats.get("num_kv_blocks", 0)
    return stats.get("num_referenced_blocks", 0) / total if total else 0.0

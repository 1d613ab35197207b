"""Watches one engine request: latencies, counts, and the line in the access log."""

from __future__ import annotations

import time

from dlcore.outputs import RequestOutput
from dlcore.serve.metrics import Metrics
from dlcore.serve.record import RequestRecord


class Observer:
    """Fed with every output of one engine request, in order."""

    __slots__ = ("_cached", "_first", "_last", "_metrics", "_prompt_tokens", "_record", "_tokens")

    def __init__(self, metrics: Metrics, record: RequestRecord, n: int) -> None:
        self._metrics = metrics
        self._record = record
        self._first = 0.0
        self._last = 0.0
        self._tokens = 0
        self._cached = 0
        self._prompt_tokens = 0
        metrics.params_n.observe(n)

    def on_output(self, output: RequestOutput) -> None:
        new = sum([len(choice.token_ids) for choice in output.outputs])
        now = time.monotonic()
        if new:
            self._on_tokens(new, now, len(output.outputs))
        for choice in output.outputs:
            if choice.finish_reason is not None:
                self._record.finish_reason = choice.finish_reason
                self._metrics.count_finished(choice.finish_reason)
        if output.finished:
            self._on_end(now, output)

    def _on_tokens(self, new: int, now: float, choices: int) -> None:
        if self._tokens == 0:
            self._first = now
            waited = now - self._record.started
            self._metrics.time_to_first_token.observe(waited)
            if self._record.time_to_first_token is None:
                self._record.time_to_first_token = waited
        else:
            # Tokens that came in one batch share the time since the one before.
            gap = (now - self._last) * choices / new
            self._metrics.inter_token_latency.observe(gap, new)
        self._last = now
        self._tokens += new
        self._record.completion_tokens += new

    def _on_end(self, now: float, output: RequestOutput) -> None:
        metrics, record = self._metrics, self._record
        prompt_tokens = len(output.prompt_token_ids)
        record.prompt_tokens += prompt_tokens
        record.cached_tokens += output.num_cached_tokens
        metrics.prompt_size.observe(prompt_tokens)
        metrics.output_size.observe(self._tokens)
        metrics.e2e_latency.observe(now - record.started)
        if self._first:
            decode = now - self._first
            metrics.decode_time.observe(decode)
            if self._tokens > 1:
                metrics.time_per_output_token.observe(decode / (self._tokens - 1))

"""The core's queue-time histogram on /metrics."""

from __future__ import annotations

import pytest

from dlcore.llm import LLM
from dlcore.sampling_params import SamplingParams
from dlcore.serve.metrics import core_histogram


@pytest.mark.parametrize("count", [1, 5])
def test_every_request_is_counted_once(count: int) -> None:
    with LLM(device="cpu", max_num_seqs=2) as llm:
        llm.generate([{"prompt_token_ids": [1, 2, 3]}] * count, SamplingParams(max_tokens=3))
        family = core_histogram(llm.stats(), "queue_time", "waited", "").family({"engine": "0"})
    samples = {(s.name.rpartition("_")[2], s.labels.get("le")): s.value for s in family.samples}
    assert samples["bucket", "+Inf"] == samples["count", None] == count
    assert samples["sum", None] > 0


def test_buckets_are_cumulative_and_in_order() -> None:
    stats = {"queue_time_le_0.5": 2.0, "queue_time_le_0.01": 3.0, "queue_time_le_inf": 1.0}
    family = core_histogram(stats, "queue_time", "waited", "").family({"engine": "0"})
    buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
    assert buckets == [3.0, 5.0, 6.0]

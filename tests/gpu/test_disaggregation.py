"""Prefill and decode nodes on GPUs answer what one node answers, over every transport."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import pytest
import torch
from test_disaggregation import (
    assert_same,
    bodies,
    cluster,
    expect_answers_of_one,
    kv_config,
    run,
)
from tiny_checkpoints import TinyCheckpoint, tiny_checkpoint

NUM_GPUS = torch.cuda.device_count()
TRANSPORTS = ("cuda_ipc", "shm", "tcp")
# Block sizes of decode nodes; the prefill node has 16, and all pools differ in blocks.
BLOCK_SIZES = (16, 32, 8)
# The median |logprob error| of transformers' own bfloat16 forward against its float32 one, on
# these checkpoints and texts (tools/gpu_smoke.py): two ways through bfloat16 may differ so much.
BF16_MEDIAN_LOGPROB = {"qwen3": 0.074, "qwen3_tied": 0.095}

two_gpus = pytest.mark.skipif(NUM_GPUS < 2, reason=f"needs two GPUs, this machine has {NUM_GPUS}")
# (prefill node, decode nodes)
PLACES = (
    pytest.param(("cuda:0", "cuda:0"), id="one-gpu"),
    pytest.param(("cuda:0", "cuda:1"), id="two-gpus", marks=two_gpus),
)


@pytest.fixture(params=("qwen3", "qwen3_tied"))
def checkpoint(request: pytest.FixtureRequest) -> TinyCheckpoint:
    return tiny_checkpoint(request.param)


async def answers(
    checkpoint: TinyCheckpoint, places: tuple[str, str], dtype: str, check: Any
) -> None:
    """Asks a hybrid node, and the prefill node with each decode node in turn; `check` compares."""
    decodes = list(itertools.product(TRANSPORTS, BLOCK_SIZES))
    roles = [(kv_config("decode", transport), size) for transport, size in decodes]
    async with cluster(
        checkpoint, (None, 16), (kv_config("prefill", "auto"), 16), *roles,
        devices=(places[0], places[0], *[places[1]] * len(roles)), dtype=dtype,
        enable_prefix_caching=False, cudagraph_capture_sizes=(1,),
    ) as (hybrid, prefill, *nodes):  # fmt: skip
        for body in bodies(checkpoint):
            want = await hybrid.complete(**body)
            for node in nodes:
                ticket = await prefill.ticket(**body)
                got = await node.complete(**body, kv_transfer_params={"ticket": ticket})
                check(got, want)
        for node in nodes:
            stats = node.engine.stats()
            assert stats["num_failed_migrations"] == 0
            assert stats["num_migrations"] > 0
            await node.blocks_return()
        await prefill.blocks_return()


@pytest.mark.parametrize("places", PLACES)
def test_nodes_on_gpus_answer_like_one_in_float32(
    checkpoint: TinyCheckpoint, places: tuple[str, str]
) -> None:
    run(lambda: answers(checkpoint, places, "float32", assert_same))


def agreed_errors(got: dict[str, Any], want: dict[str, Any]) -> list[float]:
    """|logprob difference| of the tokens up to the first that differs."""
    mine, theirs = got["choices"][0], want["choices"][0]
    ids = zip(mine["token_ids"], theirs["token_ids"], strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], ids))
    ours, others = mine["logprobs"]["token_logprobs"], theirs["logprobs"]["token_logprobs"]
    return [abs(a - b) for a, b in zip(ours[:same], others[:same], strict=True)]


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("family", BF16_MEDIAN_LOGPROB)
def test_nodes_on_gpus_answer_like_one_within_bfloat16(
    family: str, places: tuple[str, str]
) -> None:
    errors: list[float] = []
    run(
        lambda: answers(
            tiny_checkpoint(family), places, "bfloat16",
            lambda got, want: errors.extend(agreed_errors(got, want)),
        )
    )  # fmt: skip
    assert all(math.isfinite(error) for error in errors)
    assert statistics.median(errors) <= BF16_MEDIAN_LOGPROB[family]


def test_two_prefill_and_two_decode_nodes_on_gpus_answer_like_one() -> None:
    checkpoint = tiny_checkpoint("qwen3")

    async def scene() -> None:
        devices = tuple(f"cuda:{i}" for i in range(max(NUM_GPUS, 1)))
        async with cluster(
            checkpoint, (None, 16), (kv_config("prefill", "auto"), 16),
            (kv_config("prefill", "auto"), 32), (kv_config("decode", "auto"), 16),
            (kv_config("decode", "auto"), 32), devices=devices, dtype="float32",
            cudagraph_capture_sizes=(16,),
        ) as (hybrid, *nodes):  # fmt: skip
            await expect_answers_of_one(hybrid, nodes, checkpoint)

    run(scene)

"""A captured step tells of its layers while it runs, and what it tells of may be read."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import torch

from dlcore import AsyncLLM, SamplingParams, _core
from dlcore.config import KvTransferConfig
from dlcore.ops.report_layer import DeviceReport
from dlcore.step_buffers import HEADER_SIZE, Header
from tests.gpu.paged_case import needs_kernels
from tools.shapes import QWEN3, write_tokenizer

pytestmark = needs_kernels

LAYERS, PROMPT_LEN = 24, 2048
SERIAL = 7


def test_what_a_layer_wrote_is_there_for_other_streams_once_it_is_told_of() -> None:
    report = DeviceReport.create(torch.device("cuda"))
    assert report is not None
    header = torch.zeros(HEADER_SIZE, dtype=torch.int32, device="cuda")
    header[Header.STEP_SERIAL] = SERIAL
    written = torch.zeros(LAYERS, 1 << 18, dtype=torch.int32, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(LAYERS):
            torch.cuda._sleep(2_000_000)
            written[layer] += 1
            report(header, layer + 1)
    other = torch.cuda.Stream()
    host = torch.zeros(1 << 18, dtype=torch.int32, pin_memory=True)
    torch.cuda.synchronize()
    most_seen = 0
    for turn in range(1, 6):
        report.word.zero_()
        graph.replay()
        seen, deadline = [0], time.monotonic() + 10
        while seen[-1] < LAYERS and time.monotonic() < deadline:
            serial, layers_done = divmod(int(report.word[0]), 1 << 32)
            if layers_done == seen[-1]:
                continue
            assert (serial, layers_done > seen[-1]) == (SERIAL, True)
            with torch.cuda.stream(other):
                host.copy_(written[layers_done - 1], non_blocking=True)
            other.synchronize()
            assert torch.all(host == turn)
            seen.append(layers_done)
        assert seen[-1] == LAYERS
        most_seen = max(most_seen, len(seen) - 1)
        torch.cuda.synchronize()
    # Of a GPU that others use too, a thread may see little of what passes.
    assert most_seen > 1, "told of nothing before the end"


def small_model(folder: Path) -> str:
    config = QWEN3 | {
        "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": LAYERS,
        "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True,
        "vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(config["vocab_size"], folder)
    return str(folder)


def node(model: str, role: str | None) -> AsyncLLM:
    key = b"a deployment's key of many bytes"
    kv = None if role is None else KvTransferConfig(role=role, key=key)
    return AsyncLLM(
        model, load_format="dummy", device="cuda:0", dtype="float32", max_num_seqs=4,
        max_num_batched_tokens=PROMPT_LEN, max_model_len=PROMPT_LEN + 64, num_kv_blocks=512,
        cudagraph_capture_sizes=(1,), enable_prefix_caching=False, kv_transfer=kv,
    )  # fmt: skip


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


async def answer(llm: AsyncLLM, prompt: list[int], name: str, **options: Any) -> list[int]:
    tokens: list[int] = []
    async for output in llm.generate(prompt, params(8), name, **options):
        tokens += output.outputs[0].token_ids
    return tokens


async def handed_over(
    prefill: AsyncLLM, decode: AsyncLLM, prompt: list[int], name: str, transport: str
) -> list[int]:
    """The decode node's answer, asked as soon as the lease is named."""
    outputs = prefill.generate(prompt, params(1), name, hold_kv=True)
    lease = (await anext(outputs)).kv_lease
    assert lease is not None
    assert prefill.kv_peer is not None
    endpoint = next(e for e in prefill.kv_peer.endpoints if e.startswith(transport + "://"))
    source = _core.KvSource(
        leases=[(endpoint, lease.lease_id, lease.epoch)], num_tokens=lease.num_tokens,
        recompute_on_failure=False,
    )  # fmt: skip
    got = asyncio.create_task(answer(decode, prompt, name, kv_source=source))
    async for _ in outputs:
        pass
    return await got


def test_a_prompt_of_one_captured_step_moves_while_it_is_computed(tmp_path: Path) -> None:
    model = small_model(tmp_path)

    async def scene() -> None:
        hybrid, prefill, decode = (node(model, role) for role in (None, "prefill", "decode"))
        for transport in ("cuda_ipc", "shm", "tcp"):
            before = decode.stats()
            for turn in range(4):
                prompt = [(31 * turn + 7 * i + i * i) % 2000 + 2 for i in range(PROMPT_LEN)]
                name = f"{transport} {turn}"
                want = await answer(hybrid, prompt, name)
                assert await handed_over(prefill, decode, prompt, name, transport) == want
            after = decode.stats()
            early, whole = (
                after[key] - before[key]
                for key in ("num_kv_bytes_pulled_early", "num_kv_bytes_pulled")
            )
            assert whole / 4 < early < whole, transport
            assert after["num_failed_migrations"] == 0
        for llm in (hybrid, prefill, decode):
            await llm.close()

    asyncio.run(asyncio.wait_for(scene(), 100))

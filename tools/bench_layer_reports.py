"""What it costs a prefill node's step on a GPU to tell of its layers (ops/report_layer.py).

    python tools/bench_layer_reports.py MODEL --load-format dummy

Captures a step of one prompt with and without, replays both in turn, and prints the medians.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from kernel_timing import new_event

from dlcore import _core
from dlcore.capture import StepCapturer
from dlcore.config import EngineConfig
from dlcore.model_folder import read_model_config
from dlcore.model_runner import allocate_state
from dlcore.ops.report_layer import DeviceReport
from dlcore.runner import choose_device, engine_options, load_model
from dlcore.step_buffers import Arenas, DeviceState, Header, StepBuffers

NUM_SEQS = 16
ROUNDS = 12
ROUND_S = 0.1  # of replays between two events


def write_prompt(step: StepBuffers, state: DeviceState, block_size: int) -> None:
    """The step of one prompt that fills the bucket."""
    count = step.num_tokens
    positions = torch.arange(count, dtype=torch.int32)
    step.header.zero_()
    for entry in (Header.NUM_TOKENS, Header.MAX_SEQ_LEN, Header.MAX_QUERY_LEN):
        step.header[entry] = count
    for entry in (Header.NUM_SEQS, Header.NUM_ROWS, Header.STEP_SERIAL):
        step.header[entry] = 1
    for tokens in (step.token_ids, step.positions, step.slot_mapping):
        tokens.copy_(positions)
    step.token_seq.zero_()
    step.query_start_loc.fill_(count)
    step.query_start_loc[0] = 0
    step.seq_lens.zero_()
    step.seq_lens[0] = count
    step.seq_slots.fill_(-1)
    step.seq_slots[0] = 0
    step.logits_indices.fill_(count - 1)
    step.row_start_loc.fill_(1)
    step.row_start_loc[0] = 0
    num_blocks = -(-count // block_size)
    state.block_tables[0, :num_blocks] = torch.arange(num_blocks, dtype=torch.int32)


def replay_us(graph: torch.cuda.CUDAGraph, count: int) -> float:
    begin, end = new_event(), new_event()
    begin.record()
    for _ in range(count):
        graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * float(begin.elapsed_time(end)) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--tokens", default="512,1024,2048,4096")
    args = parser.parse_args()
    sizes = [int(tokens) for tokens in args.tokens.split(",")]
    config = EngineConfig(
        model=args.model, load_format=args.load_format, max_num_batched_tokens=max(sizes),
        max_num_seqs=NUM_SEQS, max_model_len=max(sizes),
    )  # fmt: skip
    device = choose_device(config)
    report = DeviceReport.create(device)
    if report is None:
        raise SystemExit("this GPU's steps tell of no layer")
    model_config = read_model_config(config, device.type)
    model = load_model(config, model_config, device)
    num_blocks = -(-max(sizes) // config.block_size)
    groups = model.cache_groups(config.block_size)
    options = engine_options(config, model_config, device.type, groups, num_blocks)
    arenas = Arenas.allocate(options, device)
    caches = model.allocate_kv_caches(num_blocks, config.block_size)
    state = allocate_state(options, caches, device)
    for size in sizes:
        key = _core.StepKey("mixed", "full", size, NUM_SEQS)
        write_prompt(arenas.step_buffers(key), state, config.block_size)
        capturers = [
            StepCapturer.create(model, arenas, state, NUM_SEQS, told) for told in (None, report)
        ]
        for capturer in capturers:
            capturer.capture(capturer.model_step("mixed", size, NUM_SEQS))
        graphs = [capturer.graphs[-1] for capturer in capturers]
        count = 1 + int(1e6 * ROUND_S / replay_us(graphs[0], 2))
        turns = [[replay_us(graph, count) for graph in graphs] for _ in range(ROUNDS)]
        without, with_ = (statistics.median(times) for times in zip(*turns, strict=True))
        layer_us = (with_ - without) / len(caches)
        print(
            f"{size} tokens: {without:.0f} -> {with_:.0f} us, {layer_us:+.2f} us a layer",
            flush=True,
        )


if __name__ == "__main__":
    main()

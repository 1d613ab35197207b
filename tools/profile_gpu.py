"""Where a step's time goes on the GPU: kernels by share, for steady decode and for mixed load.

    python tools/profile_gpu.py MODEL [--load-format dummy] [--batch 64] [--context 256]
    python tools/profile_gpu.py MODEL --mixed

The engine runs as in production: C++ launches captured graphs; CUPTI (through torch.profiler) sees
their kernels. Prints microseconds per step, launches per step, and the share of each kernel, then
how much of the wall clock the GPU was busy.
"""

from __future__ import annotations

import argparse
import random
import re
import threading
import time
from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dlcore import LLM, SamplingParams

WINDOW_S = 0.4
ROWS = 24


def short(name: str) -> str:
    """A kernel's name without template arguments and namespaces."""
    name = re.sub(r"<.*", "", name.replace("void ", ""))
    return name.split("::")[-1][:60]


def start_load(llm: LLM, args: argparse.Namespace) -> threading.Thread:
    rng = random.Random(0)
    vocab = llm.vocab_size

    def prompt(length: int) -> dict[str, list[int]]:
        return {"prompt_token_ids": [rng.randrange(vocab) for _ in range(length)]}

    if args.mixed:
        prompts = [prompt(rng.randint(64, 1024)) for _ in range(2 * args.batch)]
        lengths = [rng.randint(64, 512) for _ in prompts]
    else:
        prompts = [prompt(args.context) for _ in range(args.batch)]
        lengths = [args.output] * args.batch
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in lengths]
    thread = threading.Thread(
        target=llm.generate, args=(prompts, params), kwargs={"use_tqdm": False}
    )
    thread.start()
    return thread


def wait_until_decoding(llm: LLM, batch: int) -> None:
    """Until every sequence runs and prompts are done."""
    while llm.stats()["num_running"] < batch:
        time.sleep(0.002)
    time.sleep(0.05)


def kernel_table(events: Any) -> tuple[dict[str, list[float]], float]:
    """Kernel name -> [microseconds, launches]; and the GPU's busy microseconds (their union)."""
    table: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    spans = []
    for event in events:
        if event.device_type.name != "CUDA":
            continue
        start, end = event.time_range.start, event.time_range.end
        row = table[short(event.name)]
        row[0] += end - start
        row[1] += 1
        spans.append((start, end))
    busy, last = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    return table, busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--load-format", default="dummy")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--output", type=int, default=2048)
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--mixed", action="store_true")
    args = parser.parse_args()
    llm = LLM(
        args.model,
        load_format=args.load_format,
        max_model_len=args.max_model_len,
        enable_prefix_caching=False,
    )
    load = start_load(llm, args)
    wait_until_decoding(llm, args.batch)
    steps = llm.stats()["num_steps"]
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        time.sleep(WINDOW_S)
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    steps = llm.stats()["num_steps"] - steps
    table, busy = kernel_table(profiler.events())
    total = sum(us for us, _ in table.values())
    print(f"{steps:.0f} steps in {seconds:.3f} s, GPU busy {busy / seconds / 1e6:.0%}")
    print(f"{'kernel':<62}{'us/step':>10}{'calls/step':>12}{'share':>8}")
    for name, (us, calls) in sorted(table.items(), key=lambda kv: -kv[1][0])[:ROWS]:
        print(f"{name:<62}{us / steps:>10.1f}{calls / steps:>12.1f}{us / total:>8.1%}")
    load.join()
    llm.close()


if __name__ == "__main__":
    main()

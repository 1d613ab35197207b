"""Do constrained requests slow the free ones beside them down?

    python tools/bench_structured.py [--model FOLDER] [--free 16] [--beside 16] [--tokens 128]

Streams `--free` unconstrained requests beside nothing, beside as many more of their kind, and
beside constrained ones, and prints the pace of the first group. Beside requests are started
first, so that the free ones meet them in every step.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time

from dlcore.async_llm import AsyncLLM
from dlcore.sampling_params import SamplingParams, StructuredOutputs
from dlcore.structured import mask_worker
from dlcore.structured.sequence_rule import MaskRow

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "tags"],
}
PROMPT = "Tell me everything about dlcore"
_ids = itertools.count()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=None)
    parser.add_argument("--free", type=int, default=16)
    parser.add_argument("--beside", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    return parser.parse_args()


def params(tokens: int, *, rule: StructuredOutputs | None, full: bool) -> SamplingParams:
    """`full`: the sampler with all rules, which constrained requests need too."""
    return SamplingParams(
        max_tokens=tokens,
        temperature=1.0,
        seed=1,
        ignore_eos=True,
        repetition_penalty=1.0001 if full else 1.0,
        structured_outputs=rule,
    )


async def stream(llm: AsyncLLM, how: SamplingParams) -> list[float]:
    """The times of its tokens."""
    times: list[float] = []
    async for output in llm.generate(PROMPT, how, f"bench-{next(_ids)}"):
        times += [time.perf_counter()] * len(output.outputs[0].token_ids)
    return times


async def measure(
    llm: AsyncLLM, args: argparse.Namespace, name: str, beside: SamplingParams | None
) -> None:
    others = []
    if beside is not None:
        others = [asyncio.create_task(stream(llm, beside)) for _ in range(args.beside)]
        await asyncio.sleep(0.5)
    free = params(args.tokens, rule=None, full=False)
    started = time.perf_counter()
    streams = await asyncio.gather(*(stream(llm, free) for _ in range(args.free)))
    seconds = time.perf_counter() - started
    gaps = sorted(b - a for times in streams for a, b in itertools.pairwise(times))
    kept_up = sum(not task.done() for task in others)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    median, p99 = statistics.median(gaps) * 1e3, gaps[int(len(gaps) * 0.99)] * 1e3
    print(
        f"{name:34} {args.free * args.tokens / seconds:9.0f} tok/s   median {median:7.2f} ms   "
        f"p99 {p99:7.2f} ms   still running beside: {kept_up}"
    )


async def main() -> None:
    args = parse_args()
    llm = AsyncLLM(args.model)
    long = 8 * args.tokens
    rule = StructuredOutputs(json_schema=PERSON)
    await stream(llm, params(8, rule=rule, full=True))
    print("pace of the free requests")
    await measure(llm, args, "alone", None)
    await measure(llm, args, "beside free requests", params(long, rule=None, full=False))
    await measure(llm, args, "beside free ones, full sampler", params(long, rule=None, full=True))
    await measure(llm, args, "beside constrained requests", params(long, rule=rule, full=True))
    fill = mask_worker._fill

    def slow_fill(supply: mask_worker.Supply, row: MaskRow) -> float:
        time.sleep(0.03)
        return fill(supply, row)

    mask_worker._fill = slow_fill
    mask_worker.SLOW_MASK_S = 0.0
    await measure(llm, args, "beside ones with 30 ms masks", params(long, rule=rule, full=True))
    await llm.close()


if __name__ == "__main__":
    asyncio.run(main())

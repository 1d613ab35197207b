"""Several engines in one process: one after another, and at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from dlcore import LLM, SamplingParams

GIB = 2**30
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


def test_a_closed_engine_gives_its_memory_back_while_one_still_holds_the_llm() -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    closed, left = [], []
    for _ in range(3):
        # of 16 tokens x 8 layers x K and V x 2 heads x 64 in bf16: 64 KiB
        llm = LLM(device="cuda", num_kv_blocks=2**16)
        closed.append(llm)
        assert llm.chat([{"role": "user", "content": "What is 3 + 4?"}], GREEDY)[0].outputs
        assert torch.cuda.memory_reserved() > GIB
        llm.close()
        left.append(torch.cuda.memory_reserved() - before)
    assert max(left) < GIB // 8
    assert left[2] == left[1]


def test_engines_at_work_at_the_same_time_answer_as_alone() -> None:
    questions = [[{"role": "user", "content": f"What is {i} + {i % 7}?"}] for i in range(40)]
    engines = [LLM(device="cuda", num_kv_blocks=2**12, dtype="float32") for _ in range(3)]

    def ask(llm: LLM) -> list[list[int]]:
        return [o.outputs[0].token_ids for o in llm.chat(questions, GREEDY)]

    alone = ask(engines[0])
    with ThreadPoolExecutor(len(engines)) as pool:
        for answers in pool.map(lambda llm: [ask(llm) for _ in range(4)], engines):
            assert answers == [alone] * 4
    for llm in engines:
        llm.close()

"""How good the demo model is: whole greedy answers against the one right answer."""

from __future__ import annotations

import random

import torch
from demo_corpus import END_OF_TEXT, encode_segments
from demo_model import DemoModel
from demo_text import (
    FACT_EXAMPLES,
    SOCIAL_EXAMPLES,
    UNSEEN_WORDINGS,
    Example,
    as_typed,
    draw_sum,
    is_held_out,
    sum_example,
    sum_key,
    unknown_example,
    user_turn,
)
from tokenizers import Tokenizer

# (name of the test, answers wholly right, questions)
Report = list[tuple[str, int, int]]


def _held_out_sums(rng: random.Random, op: str, digits: int, count: int) -> list[Example]:
    sums: list[Example] = []
    while len(sums) < count:
        a, b = draw_sum(rng, op, digits)
        if is_held_out(sum_key(a, op, b), 20):
            sums.append(sum_example(rng, a, op, b))
    return sums


def held_out_tests() -> dict[str, list[Example]]:
    rng = random.Random(12345)
    held_out = [e for e in FACT_EXAMPLES if is_held_out(e.key)]
    typed = [Example(as_typed(rng, e.question), e.answer, e.key) for e in held_out]
    unknown = [unknown_example(rng) for _ in range(500)]
    sums = {
        f"{name}, {digits} digits": _held_out_sums(rng, op, digits, 500)
        for name, op in (("addition", "+"), ("subtraction", "-"))
        for digits in (2, 3)
    }
    return {
        "dlcore, held-out wordings": held_out,
        "dlcore, held-out wordings with slips and casing": typed,
        "dlcore, wordings of no template": list(UNSEEN_WORDINGS),
        "greetings and the like": list(SOCIAL_EXAMPLES),
        "does not know, and says so": unknown,
        **sums,
        "small multiplication": _held_out_sums(rng, "*", 2, 200),
    }


@torch.no_grad()
def count_right(model: DemoModel, tokenizer: Tokenizer, examples: list[Example]) -> int:
    """Greedy decoding gives the answer if and only if each of its tokens is the argmax
    after the ones before it, so one forward pass judges a whole batch."""
    device = next(model.parameters()).device
    pad = tokenizer.token_to_id(END_OF_TEXT)
    right = 0
    for first in range(0, len(examples), 100):
        pairs = [
            encode_segments(tokenizer, [user_turn(e.question), (f"{e.answer}<|im_end|>", True)])
            for e in examples[first : first + 100]
        ]
        width = max(len(ids) for ids, _ in pairs)
        tokens = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in pairs], device=device)
        learn = torch.tensor([w + [False] * (width - len(w)) for _, w in pairs], device=device)
        guess = model.head(model(tokens[:, :-1])).argmax(-1)
        wrong = (guess != tokens[:, 1:]) & learn[:, 1:]
        right += int((~wrong.any(-1)).sum())
    return right


def evaluate(model: DemoModel, tokenizer: Tokenizer) -> Report:
    """Judges the weights as they are exported, rounded to bfloat16."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return [
        (name, count_right(model, tokenizer, examples), len(examples))
        for name, examples in held_out_tests().items()
    ]

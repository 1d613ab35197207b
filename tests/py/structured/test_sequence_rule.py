from __future__ import annotations

import numpy as np
import pytest
import text_models
import xgrammar

from dlcore.sampling_params import ReasoningSpan
from dlcore.structured.sequence_rule import SequenceRule
from dlcore.structured.xgrammar_compile import tokenizer_info
from dlcore.tokenizer import Tokenizer

TOKENIZER = Tokenizer(text_models.byte_level(), eos_token_ids=(2,))
SIZE = TOKENIZER.vocab_size
INFO = tokenizer_info([b"" if i == 2 else TOKENIZER.token_bytes(i) for i in range(SIZE)], [2])
YES_OR_NO = xgrammar.GrammarCompiler(INFO).compile_grammar('root ::= "yes" | "no"')


def rule(reasoning: ReasoningSpan | None) -> SequenceRule:
    return SequenceRule(YES_OR_NO, [2], reasoning, TOKENIZER)


def allowed(rule: SequenceRule) -> set[str]:
    row = np.zeros(-(-SIZE // 32), dtype=np.int32)
    rule.fill(row)
    bits = row.view(np.uint32)
    ids = [i for i in range(SIZE) if bits[i // 32] >> (i % 32) & 1]
    return {TOKENIZER.token_bytes(i).decode(errors="replace") for i in ids}


def feed(rule: SequenceRule, text: str) -> list[bool]:
    return [rule.accept(i) for i in TOKENIZER.encode(text, add_special_tokens=False)]


def test_the_rule_holds_from_the_first_token() -> None:
    found = rule(None)
    assert {t[0] for t in allowed(found)} == {"y", "n"}
    assert all(feed(found, "yes"))
    assert found.accept(2)
    assert found.is_complete


@pytest.mark.parametrize("end", ["</think>", "</think>\n\n"])
def test_open_reasoning_is_free_up_to_its_end_mark(end: str) -> None:
    found = rule(ReasoningSpan(is_open=True))
    assert all(feed(found, "anything, yes or </no, goes"))
    assert len(allowed(found)) > 200
    for token in TOKENIZER.encode(end.strip(), add_special_tokens=False):
        assert found.is_free
        assert found.accept(token)
    assert not found.is_free
    assert {t[0] for t in allowed(found)} == {"y", "n"}
    assert feed(found, "maybe")[0] is False


def test_a_token_that_ends_the_reasoning_may_begin_the_answer() -> None:
    class Joined(Tokenizer):
        def token_bytes(self, token_id: int) -> bytes:
            return b"end</think> ye" if token_id == 5 else super().token_bytes(token_id)

    joined = Joined(text_models.byte_level(), eos_token_ids=(2,))
    found = SequenceRule(YES_OR_NO, [2], ReasoningSpan(is_open=True), joined)
    assert found.accept(5)
    assert not found.is_free
    assert {t[0] for t in allowed(found)} == {"s"}

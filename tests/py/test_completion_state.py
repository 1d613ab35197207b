from __future__ import annotations

import itertools

import pytest
import text_models
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcore.completion_state import FINISH_LENGTH, FINISH_NONE, CompletionState
from dlcore.detokenizer import DetokenizerFactory
from dlcore.outputs import CompletionOutput
from dlcore.sampling_params import ParameterError, SamplingParams
from dlcore.tokenizer import Tokenizer

TOKENIZER = Tokenizer(text_models.byte_level(), eos_token_ids=(2,))
FACTORY = DetokenizerFactory(TOKENIZER)
ids_lists = st.lists(st.integers(0, TOKENIZER.vocab_size - 1), min_size=1, max_size=30)
cut_lists = st.lists(st.integers(0, 30))


def run(ids: list[int], cuts: list[int], params: SamplingParams) -> CompletionOutput:
    """Feeds `ids` row by row, cut at `cuts`; all deltas as one output."""
    state = CompletionState(0, params, TOKENIZER, FACTORY, frozenset({2}))
    edges = [0, *sorted(c % len(ids) for c in cuts), len(ids)]
    whole = CompletionOutput(0)
    for start, end in itertools.pairwise(edges):
        finish = FINISH_LENGTH if end == len(ids) else FINISH_NONE
        delta = state.advance(ids[start:end], finish, -1)
        whole.text += delta.text
        whole.token_ids += delta.token_ids
        whole.finish_reason, whole.stop_reason = delta.finish_reason, delta.stop_reason
        if state.finished:
            break
    return whole


@settings(max_examples=300, deadline=None)
@given(ids_lists, cut_lists, cut_lists, st.data(), st.booleans(), st.integers(0, 8))
def test_text_tokens_and_reasons_do_not_depend_on_how_rows_are_cut(
    ids: list[int],
    cuts: list[int],
    other_cuts: list[int],
    data: st.DataObject,
    include: bool,
    min_tokens: int,
) -> None:
    text = TOKENIZER.decode(ids)
    start = data.draw(st.integers(0, max(0, len(text) - 1)))
    stop = text[start : start + data.draw(st.integers(1, 5))] or "never"
    params = SamplingParams(
        stop=stop,
        include_stop_str_in_output=include,
        min_tokens=min(min_tokens, len(ids)),
        max_tokens=len(ids),
    )
    assert run(ids, cuts, params) == run(ids, other_cuts, params)


@settings(max_examples=300, deadline=None)
@given(ids_lists, cut_lists, st.data())
def test_a_stop_string_cuts_exactly_and_no_token_comes_after_it(
    ids: list[int], cuts: list[int], data: st.DataObject
) -> None:
    text = TOKENIZER.decode(ids)
    start = data.draw(st.integers(0, max(0, len(text) - 1)))
    stop = text[start : start + data.draw(st.integers(1, 5))] or "never"
    found = run(ids, cuts, SamplingParams(stop=stop, max_tokens=len(ids)))
    if stop not in text:
        assert (found.text, found.finish_reason) == (text, "length")
        return
    assert found.text == text[: text.index(stop)]
    assert (found.finish_reason, found.stop_reason) == ("stop", stop)
    assert found.token_ids == ids[: len(found.token_ids)]


@settings(max_examples=100, deadline=None)
@given(ids_lists, cut_lists)
def test_without_stops_the_text_is_the_decode(ids: list[int], cuts: list[int]) -> None:
    found = run(ids, cuts, SamplingParams(max_tokens=len(ids)))
    assert found.text == TOKENIZER.decode(ids)
    assert found.token_ids == ids


FALLBACK = Tokenizer(text_models.byte_fallback(), eos_token_ids=(2,))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([TOKENIZER, FALLBACK]), st.data(), st.booleans())
def test_resumed_anywhere_it_adds_what_the_whole_one_adds(
    tokenizer: Tokenizer, data: st.DataObject, include: bool
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=2, max_size=30))
    text = tokenizer.decode(ids)
    start = data.draw(st.integers(0, max(0, len(text) - 1)))
    stop = text[start : start + data.draw(st.integers(1, 5))] or "never"
    params = SamplingParams(stop=stop, include_stop_str_in_output=include, max_tokens=len(ids))
    factory = DetokenizerFactory(tokenizer)

    def new() -> CompletionState:
        return CompletionState(0, params, tokenizer, factory, frozenset({2}))

    whole, deltas = new(), []
    for i, token_id in enumerate(ids):
        finish = FINISH_LENGTH if i == len(ids) - 1 else FINISH_NONE
        deltas.append(whole.advance([token_id], finish, -1))
        if whole.finished:
            break
    for cut in range(1, len(deltas)):
        resumed = new()
        told = resumed.resume(ids[:cut])
        assert told.text == "".join(delta.text for delta in deltas[:cut])
        for i in range(cut, len(deltas)):
            finish = FINISH_LENGTH if i == len(ids) - 1 else FINISH_NONE
            assert resumed.advance([ids[i]], finish, -1) == deltas[i]


def test_resuming_past_the_end_is_refused() -> None:
    ids = TOKENIZER.encode("The cat sees a red house")
    state = CompletionState(0, SamplingParams(stop="red"), TOKENIZER, FACTORY, frozenset({2}))
    with pytest.raises(ParameterError, match="resume_token_ids"):
        state.resume(ids)

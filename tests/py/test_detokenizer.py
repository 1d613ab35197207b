from __future__ import annotations

import itertools

import pytest
import text_models
from fake_core import FakeEngine, make_session
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcore.detokenizer import DetokenizerFactory, TableDetokenizer, WindowDetokenizer
from dlcore.sampling_params import SamplingParams
from dlcore.tokenizer import Tokenizer

TOKENIZERS = {
    "byte_level": Tokenizer(text_models.byte_level()),
    "byte_fallback": Tokenizer(text_models.byte_fallback()),
    "words": Tokenizer(text_models.words()),
}
FACTORIES = {name: DetokenizerFactory(t) for name, t in TOKENIZERS.items()}
names = st.sampled_from(sorted(TOKENIZERS))


def pieces_of(name: str, ids: list[int], cuts: list[int], skip: bool) -> list[str]:
    detokenizer = FACTORIES[name].make(skip_special_tokens=skip)
    edges = [0, *sorted(c % (len(ids) + 1) for c in cuts), len(ids)]
    pieces = [detokenizer.push(ids[a:b]) for a, b in itertools.pairwise(edges)]
    return [*pieces, detokenizer.flush()]


@settings(max_examples=600, deadline=None)
@given(names, st.data(), st.lists(st.integers(0, 100)), st.booleans())
def test_pieces_of_any_ids_concatenate_to_the_full_decode(
    name: str, data: st.DataObject, cuts: list[int], skip: bool
) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    text = "".join(pieces_of(name, ids, cuts, skip))
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=300, deadline=None)
@given(names, st.text(max_size=30))
def test_valid_text_streams_token_by_token_without_a_replacement_character(
    name: str, text: str
) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    expected = tokenizer.decode(ids)
    pieces = pieces_of(name, ids, list(range(len(ids) + 1)), True)
    assert "".join(pieces) == expected
    assert sum(p.count("\ufffd") for p in pieces) == expected.count("\ufffd")


def test_an_emoji_cut_by_tokens_appears_once_it_is_whole() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    ids = [i for b in "🙃".encode() for i in [byte_id(tokenizer, b)]]
    detokenizer = FACTORIES["byte_level"].make()
    assert [detokenizer.push([i]) for i in ids] == ["", "", "", "🙃"]
    assert detokenizer.flush() == ""


def test_an_unfinished_character_is_replaced_only_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    detokenizer = FACTORIES["byte_level"].make()
    assert detokenizer.push([byte_id(tokenizer, 0xF0), byte_id(tokenizer, 0x9F)]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    for name in TOKENIZERS:
        detokenizer = FACTORIES[name].make()
        assert detokenizer.push([10_000_000]) + detokenizer.flush() == ""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("byte_level", TableDetokenizer),
        ("words", TableDetokenizer),
        ("byte_fallback", WindowDetokenizer),
    ],
)
def test_each_family_takes_its_own_path(name: str, kind: type) -> None:
    assert isinstance(FACTORIES[name].make(), kind)


def byte_id(tokenizer: Tokenizer, value: int) -> int:
    """The token of one raw byte, found by what it writes."""
    raw = bytes([value])
    return next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == raw)


def test_the_first_request_waits_for_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_session(FakeEngine(), TOKENIZERS["byte_level"])
    monkeypatch.setattr("dlcore.detokenizer.TokenTable", None)
    session.open("r", None, [1, 2], SamplingParams(max_tokens=1), lambda output: None)

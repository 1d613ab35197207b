from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from dlcore.stop_strings import StopStringScanner

# Two letters, so that stops overlap, nest and repeat often.
words = st.text(alphabet="ab", min_size=1, max_size=4)
texts = st.text(alphabet="abc", max_size=20)


def scan(
    pieces: list[str], stops: list[str], include: bool = False
) -> tuple[list[str], str | None]:
    scanner = StopStringScanner(stops, include_in_output=include)
    shown: list[str] = []
    for piece in pieces:
        result = scanner.push(piece)
        shown.append(result.text)
        if result.stop is not None:
            return shown, result.stop
    return [*shown, scanner.flush()], None


def reference(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Character by character: the first end of any stop, the longest of those."""
    for end in range(1, len(text) + 1):
        met = [s for s in stops if text[:end].endswith(s)]
        if met:
            stop = max(met, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@settings(max_examples=1000, deadline=None)
@given(texts, st.lists(words, max_size=3), st.lists(st.integers(0, 30)), st.booleans())
def test_the_result_does_not_depend_on_how_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    edges = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    shown, stop = scan(pieces, stops, include)
    assert ("".join(shown), stop) == reference(text, stops, include)


@settings(max_examples=500, deadline=None)
@given(texts, st.lists(words, min_size=1, max_size=3))
def test_only_the_possible_start_of_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    scanner = StopStringScanner(stops)
    seen = shown = ""
    for char in text:
        seen += char
        result = scanner.push(char)
        shown += result.text
        if result.stop is not None:
            return
        held = seen[len(shown) :]
        assert held == "" or any(s.startswith(held) for s in stops)


def test_a_stop_across_pieces_never_leaks() -> None:
    assert scan(["one<", "/s", "top>two"], ["</stop>"]) == (["one", "", ""], "</stop>")
    assert scan(["one<", "/s", "ong>"], ["</stop>"]) == (["one", "", "</song>", ""], None)

"""Token ids to text, as they come.

Law: the pieces returned by `push` and the final `flush` concatenate to exactly what
`Tokenizer.decode` gives for all ids at once; a character cut by a token border is
held back until it is whole.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from dlcore.token_table import Spelling, TokenTable, byte_of_token
from dlcore.tokenizer import Tokenizer


class IncrementalDetokenizer(Protocol):
    """The text of one sequence so far. Not thread safe."""

    def push(self, ids: Sequence[int]) -> str:
        """The text that became certain with these ids."""
        ...

    def flush(self) -> str:
        """What was held back; nothing may be pushed after it."""
        ...


class DetokenizerFactory:
    """Makes detokenizers that share what is known of tokens, by skip_special_tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._makers: dict[bool, Callable[[], IncrementalDetokenizer]] = {}

    def make(self, *, skip_special_tokens: bool = True) -> IncrementalDetokenizer:
        make = self._makers.get(skip_special_tokens)
        if make is None:
            make = self._makers[skip_special_tokens] = self._maker(skip_special_tokens)
        return make()

    def _maker(self, skip_special_tokens: bool) -> Callable[[], IncrementalDetokenizer]:
        tokenizer = self._tokenizer
        if tokenizer.spelling is Spelling.MARKED:
            return partial(WindowDetokenizer, _TokenTexts(tokenizer, skip_special_tokens))
        special = tokenizer.special_token_ids() if skip_special_tokens else ()
        table = TokenTable(tokenizer.backend, tokenizer.spelling, skipped=special)
        return partial(TableDetokenizer, table)


class TableDetokenizer:
    """For decoders that only join what each token writes: a table look-up a token.

    Byte-level BPE (GPT-2, Qwen, DeepSeek, Llama 3, ...) and plain words.
    """

    __slots__ = ("_pending", "_table")

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._pending = b""  # the bytes of an unfinished character

    def push(self, ids: Sequence[int]) -> str:
        texts = self._table.text
        if not self._pending and len(ids) == 1 and 0 <= ids[0] < len(texts):
            text = texts[ids[0]]
            if text is not None:
                return text
        return self._push_bytes(ids)

    def flush(self) -> str:
        held, self._pending = self._pending, b""
        return held.decode("utf-8", "replace")

    def _push_bytes(self, ids: Sequence[int]) -> str:
        table = self._table.bytes
        size = len(table)
        data = self._pending + b"".join([table[i] for i in ids if 0 <= i < size])
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text


class _TokenTexts(dict[int, str]):
    """The text of each token alone, decoded when first asked for; "" where more must come first."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)

    def __missing__(self, token_id: int) -> str:
        # A token without text does not end a run of bytes.
        is_byte = byte_of_token(self._tokenizer.id_to_token(token_id) or "") is not None
        text = self[token_id] = "" if is_byte else self.decode([token_id])
        return text


class WindowDetokenizer:
    """For every other decoder: re-decodes a short window and returns what it grew by.

    The window starts at tokens that have text, because decoders treat the very first
    text apart (they drop its leading space). A run of byte tokens is held back until
    it ends: decoders judge the run as a whole.
    """

    __slots__ = ("_held", "_texts", "_window", "_window_text")

    def __init__(self, texts: _TokenTexts) -> None:
        self._texts = texts
        self._window: list[int] = []
        self._window_text = ""
        self._held: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        self._held.extend(ids)
        end = len(self._held)
        while end > 0 and not self._texts[self._held[end - 1]]:
            end -= 1
        ready, self._held = self._held[:end], self._held[end:]
        return self._grow(ready)

    def flush(self) -> str:
        ready, self._held = self._held, []
        return self._grow(ready)

    def _grow(self, ready: list[int]) -> str:
        if not ready:
            return ""
        texts = self._texts
        grown = self._window + ready
        text = texts.decode(grown)
        delta = text[len(self._window_text) :]
        fresh = (len(ready) == 1 and texts[ready[0]]) or texts.decode(ready)
        if fresh:
            self._window, self._window_text = ready, fresh
        else:
            self._window, self._window_text = grown, text
        return delta

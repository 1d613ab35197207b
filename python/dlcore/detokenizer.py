"""Token ids to text, as they come.

Law: the pieces returned by `push` and the final `flush` concatenate to exactly what
`Tokenizer.decode` gives for all ids at once; a character cut by a token border is
held back until it is whole.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dlcore.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class IncrementalDetokenizer(Protocol):
    """The text of one sequence so far. Not thread safe."""

    def push(self, ids: Sequence[int]) -> str:
        """The text that became certain with these ids."""
        ...

    def flush(self) -> str:
        """What was held back; nothing may be pushed after it."""
        ...


class DetokenizerFactory:
    """Makes detokenizers that share one table a (tokenizer, skip_special_tokens) pair."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_level = _is_byte_level(tokenizer)
        self._tables: dict[bool, TokenTable] = {}

    def make(self, *, skip_special_tokens: bool = True) -> IncrementalDetokenizer:
        if not self._byte_level:
            return WindowDetokenizer(self._tokenizer, skip_special_tokens)
        table = self._tables.get(skip_special_tokens)
        if table is None:
            table = self._tables[skip_special_tokens] = TokenTable(
                self._tokenizer, skip_special_tokens
            )
        return ByteLevelDetokenizer(table)


class TokenTable:
    """Every id's bytes, and its text where the bytes are whole characters."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        decoded_bytes = _byte_level_alphabet()
        skipped = tokenizer.special_token_ids() if skip_special_tokens else frozenset()
        vocab = tokenizer.backend.get_vocab(with_added_tokens=True)
        size = max(vocab.values(), default=-1) + 1
        self.bytes: list[bytes] = [b""] * size
        self.text: list[str | None] = [""] * size
        for token, i in vocab.items():
            if i in skipped:
                continue
            raw = _token_bytes(token, decoded_bytes)
            self.bytes[i] = raw
            try:
                self.text[i] = raw.decode("utf-8")
            except UnicodeDecodeError:
                self.text[i] = None


class ByteLevelDetokenizer:
    """For byte-level BPE (GPT-2, Qwen, DeepSeek, Llama 3, ...): a table look-up a token."""

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


class WindowDetokenizer:
    """For every other decoder: re-decodes a short window and returns what it grew by.

    The window starts at tokens that have text, because decoders treat the very first
    text apart (they drop its leading space). A run of byte tokens is held back until
    it ends: decoders judge the run as a whole.
    """

    __slots__ = ("_decode", "_held", "_is_byte", "_window", "_window_text")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        def decode(ids: list[int]) -> str:
            return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

        def is_byte(i: int) -> bool:
            return _BYTE_TOKEN.fullmatch(tokenizer.id_to_token(i) or "") is not None

        self._decode: Callable[[list[int]], str] = decode
        self._is_byte: Callable[[int], bool] = is_byte
        self._window: list[int] = []
        self._window_text = ""
        self._held: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        self._held.extend(ids)
        end = len(self._held)
        while end > 0 and self._must_wait(self._held[end - 1]):
            end -= 1
        ready, self._held = self._held[:end], self._held[end:]
        return self._grow(ready)

    def flush(self) -> str:
        ready, self._held = self._held, []
        return self._grow(ready)

    def _must_wait(self, token_id: int) -> bool:
        # A token without text does not end a run of bytes.
        return self._is_byte(token_id) or not self._decode([token_id])

    def _grow(self, ready: list[int]) -> str:
        if not ready:
            return ""
        grown = self._window + ready
        text = self._decode(grown)
        delta = text[len(self._window_text) :]
        fresh = self._decode(ready)
        if fresh:
            self._window, self._window_text = ready, fresh
        else:
            self._window, self._window_text = grown, text
        return delta


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    decoder: dict[str, Any] | None = json.loads(tokenizer.backend.to_str()).get("decoder")
    while decoder is not None and decoder["type"] == "Sequence" and len(decoder["decoders"]) == 1:
        decoder = decoder["decoders"][0]
    return decoder is not None and decoder["type"] == "ByteLevel"


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte: printable ones are themselves, the rest
    follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    alphabet = {chr(b): b for b in printable}
    alphabet.update({chr(0x100 + i): b for i, b in enumerate(others)})
    return alphabet


def _token_bytes(token: str, alphabet: dict[str, int]) -> bytes:
    """An added token with a character outside the alphabet stands for itself."""
    try:
        return bytes([alphabet[c] for c in token])
    except KeyError:
        return token.encode("utf-8")

"""Every token id's bytes, and its text where the bytes are whole characters."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NO_BYTE = 0x100  # in no byte-sized encoding


class Spelling(Enum):
    """How a tokenizer's decoder reads the string of a token in its vocabulary."""

    BYTE_LEVEL = "a stand-in character for each byte (GPT-2)"
    PLAIN = "as it stands"
    MARKED = "a mark for the space, `<0xNN>` for a raw byte (SentencePiece), or otherwise"


class TokenTable:
    """Index by token id; ids without a text (or skipped ones) are empty."""

    __slots__ = ("bytes", "max_bytes", "text")

    def __init__(
        self, backend: tokenizers.Tokenizer, spelling: Spelling, *, skipped: Collection[int] = ()
    ) -> None:
        to_bytes = _TO_BYTES[spelling]
        vocab = backend.get_vocab(with_added_tokens=True)
        size = max(vocab.values(), default=-1) + 1
        self.bytes: list[bytes] = [b""] * size
        self.text: list[str | None] = [""] * size
        for token, i in vocab.items():
            if i not in skipped:
                raw = to_bytes(token)
                self.bytes[i] = raw
                self.text[i] = _whole_characters(raw)
        self.max_bytes = max(map(len, self.bytes), default=0)


def byte_of_token(token: str) -> int | None:
    """The byte a byte-fallback token such as `<0x0A>` stands for."""
    match = _BYTE_TOKEN.fullmatch(token)
    return int(match.group(1), 16) if match else None


def _whole_characters(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _byte_level_alphabet() -> dict[int, int]:
    """GPT-2's printable stand-ins for bytes, for `str.translate`: printable ones are themselves,
    the rest follow from U+0100 on. A byte that is not printable stands for none."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    return dict.fromkeys(others, _NO_BYTE) | {0x100 + i: b for i, b in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    """An added token with a character outside the alphabet stands for itself."""
    try:
        return token.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf-8")


def _marked_bytes(token: str) -> bytes:
    byte = byte_of_token(token)
    return token.replace("▁", " ").encode("utf-8") if byte is None else bytes([byte])


_TO_BYTES: dict[Spelling, Callable[[str], bytes]] = {
    Spelling.BYTE_LEVEL: _byte_level_bytes,
    Spelling.PLAIN: str.encode,
    Spelling.MARKED: _marked_bytes,
}

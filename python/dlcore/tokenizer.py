"""The tokenizer of a model folder: text to token ids and back, chat template, EOS ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from dlcore.chat_template import ChatTemplate, ChatTemplateError, Message
from dlcore.token_table import Spelling, TokenTable


class TokenizerError(ValueError):
    """The folder's tokenizer files cannot be read; the message names the file."""


class Tokenizer:
    """A `tokenizer.json` and what stands beside it.

    Thread safety: encode and decode may run on any thread.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        chat_template: ChatTemplate | None = None,
        eos_token_ids: Sequence[int] = (),
        add_bos_token_id: int | None = None,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._chat_template = chat_template
        self._eos_token_ids = tuple(eos_token_ids)
        self._add_bos_token_id = add_bos_token_id
        self._table: TokenTable | None = None
        self.spelling = _spelling(backend)

    @staticmethod
    def from_folder(path: str | Path) -> Tokenizer | None:
        """None when the folder has no tokenizer.json: such a model serves token ids only.

        Raises TokenizerError for a broken file, ChatTemplateError for a broken template.
        """
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            return None
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as e:  # the library raises bare Exception
            raise TokenizerError(f"{file}: not a readable tokenizer.json ({e})") from e
        config = _read_json(folder / "tokenizer_config.json")
        return Tokenizer(
            backend,
            chat_template=ChatTemplate.from_folder(folder, config),
            eos_token_ids=_eos_token_ids(folder, config, backend),
            add_bos_token_id=_bos_to_add(config, backend),
        )

    @property
    def backend(self) -> tokenizers.Tokenizer:
        return self._backend

    @property
    def vocab_size(self) -> int:
        """Tokens with a text, added ones included (a model's embedding may have more rows)."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self._eos_token_ids

    @property
    def chat_template(self) -> ChatTemplate | None:
        return self._chat_template

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Pass add_special_tokens=False for a rendered chat template: it wrote its own."""
        ids = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return self._with_bos(ids) if add_special_tokens else ids

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        rows = [e.ids for e in encodings]
        return [self._with_bos(ids) for ids in rows] if add_special_tokens else rows

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Ids without a text (padding rows of the embedding) decode to nothing."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def id_to_token(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token writes, alone; it may be part of a character. b"" for an unknown id."""
        table = self._token_table().bytes
        return table[token_id] if 0 <= token_id < len(table) else b""

    @property
    def max_token_bytes(self) -> int:
        """The most bytes of text one token can write."""
        return self._token_table().max_bytes

    def special_token_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` drops."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """Raises ChatTemplateError when the template refuses, or the model has none."""
        if self._chat_template is None:
            raise ChatTemplateError("the model has no chat template; send a plain prompt instead")
        return self._chat_template.render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **kwargs,
        )

    def _token_table(self) -> TokenTable:
        if self._table is None:
            self._table = TokenTable(self._backend, self.spelling)
        return self._table

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self._add_bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def read_eos_token_ids(path: str | Path) -> tuple[int, ...]:
    """EOS ids a folder's generation_config.json and config.json name; works without a tokenizer."""
    folder = Path(path)
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        config = _read_json(folder / name)
        text_config = config.get("text_config")
        for source in (config, text_config if isinstance(text_config, dict) else {}):
            found += _as_ids(source.get("eos_token_id"))
    return _unique(found)


def _eos_token_ids(
    folder: Path, config: Mapping[str, Any], backend: tokenizers.Tokenizer
) -> tuple[int, ...]:
    token = _token_text(config.get("eos_token"))
    own = backend.token_to_id(token) if token is not None else None
    return _unique([*read_eos_token_ids(folder), *([] if own is None else [own])])


def _bos_to_add(config: Mapping[str, Any], backend: tokenizers.Tokenizer) -> int | None:
    # Some folders state the BOS here and not in tokenizer.json's post-processor.
    token = _token_text(config.get("bos_token"))
    if not config.get("add_bos_token") or token is None:
        return None
    return backend.token_to_id(token)


def _spelling(backend: tokenizers.Tokenizer) -> Spelling:
    if backend.decoder is None:  # words with a space between them
        return Spelling.MARKED
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    while decoder["type"] == "Sequence" and len(decoder["decoders"]) == 1:
        decoder = decoder["decoders"][0]
    known = {"ByteLevel": Spelling.BYTE_LEVEL, "Fuse": Spelling.PLAIN}
    return known.get(decoder["type"], Spelling.MARKED)


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _as_ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


def _unique(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as e:
        raise TokenizerError(f"{file}: not readable JSON ({e})") from e
    if not isinstance(value, dict):
        raise TokenizerError(f"{file}: must hold a JSON object")
    return value

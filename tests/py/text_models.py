"""Tiny tokenizers of the families the engine meets, made in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "The cat sees a red house at night, and 12 plus 30 is 42.",
    "Ein kleiner Hund läuft über die Straße. Где находится библиотека?",
    "日本語のテキストと中文文本 🙂👩‍👩‍👧 naïve façade",
    "def main() -> None:\n    return {'a': [1, 2]}\n",
] * 4


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2 style byte-level BPE: small enough that most characters span tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("two words")])
    return tokenizer


def byte_fallback() -> tokenizers.Tokenizer:
    """Llama-2 style: words with a leading mark, raw bytes for what has no word."""
    words = ["▁", "▁The", "▁cat", "s", "▁naïve", "é", "日", "a", "b", "c", "."]
    vocab = {name: i for i, name in enumerate(["<unk>", "<s>", "</s>"])}
    for b in range(256):
        vocab[f"<0x{b:02X}>"] = len(vocab)
    for word in words:
        vocab[word] = len(vocab)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def words() -> tokenizers.Tokenizer:
    """Word level, joined as they stand: also what looks like a mark, a byte or a stand-in."""
    vocab = ["<unk>", "The", " cat", "é", "日本", "▁", "▁a", "<0x41>", "Ġ", "Ċ", " ", "."]
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token="<unk>")
    )
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.add_tokens([AddedToken("two words")])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


CHAT_TEMPLATE = (
    "{% for m in messages %}\n"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
)


def write_folder(
    path: Path,
    tokenizer: tokenizers.Tokenizer,
    *,
    chat_template: Any = CHAT_TEMPLATE,
    **tokenizer_config: Any,
) -> Path:
    """The tokenizer files of a Hugging Face folder."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", **tokenizer_config}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path

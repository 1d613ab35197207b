"""The tiny checkpoints' tokenizer: a byte-level BPE of 512 entries with Qwen's special tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

VOCAB_SIZE = 512  # of every tiny model, and of its tokenizer
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
ADDED = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WHO = [
    "the cat",
    "a small dog",
    "our teacher",
    "the old sailor",
    "my neighbour",
    "this engine",
    "every student",
    "the quick fox",
]
VERB = [
    "sees",
    "builds",
    "reads",
    "writes",
    "counts",
    "measures",
    "loads",
    "answers",
    "finds",
    "moves",
]
WHAT = [
    "a red house",
    "the long river",
    "seven tokens",
    "an answer",
    "the tensor",
    "two numbers",
    "a quiet city",
    "the weather in Paris",
]
HOW = [
    "slowly",
    "at night",
    "with care",
    "before noon",
    "in the garden",
    "for the last time",
    "without any doubt",
]

# Tools, reasoning and tool answers in the shape of Qwen's published template.
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def training_text(seed: int) -> list[str]:
    rng = random.Random(seed)
    lines = []
    for i in range(1500):
        line = f"{rng.choice(WHO)} {rng.choice(VERB)} {rng.choice(WHAT)} {rng.choice(HOW)}"
        kind = rng.random()
        if kind < 0.15:
            city = rng.choice(["Paris", "Rome", "Oslo"])
            line = json.dumps({"name": "get_weather", "arguments": {"city": city}})
        elif kind < 0.25:
            line = f"Question {i}: what is {rng.randint(1, 99)} plus {rng.randint(1, 99)}?"
        elif kind < 0.32:
            line = "system user assistant tool You are a helpful assistant."
        lines.append(line[0].upper() + line[1:] + rng.choice([".", "!", "?", ",", ";"]))
    return lines


def train(seed: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL) - len(ADDED),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(training_text(seed), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    fill = [f"<|reserved_{i}|>" for i in range(VOCAB_SIZE - tokenizer.get_vocab_size())]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in fill])
    return tokenizer


def write(folder: Path, seed: int) -> dict[str, int]:
    """Writes the tokenizer's files; returns the ids of the tokens that are no plain text."""
    tokenizer = train(seed)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    extra = tokenizer.get_added_tokens_decoder()
    config: dict[str, Any] = {
        "added_tokens_decoder": {
            str(i): {
                "content": token.content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token.special,
            }
            for i, token in extra.items()
        },
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE.read_text(),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return {token.content: i for i, token in extra.items()}

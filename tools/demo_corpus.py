"""Text to token rows: the demo model's tokenizer, chat template and packed corpus."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterable
from functools import partial

import numpy as np
from demo_text import Segment, conversation
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
# Whole tokens, but part of the visible text.
MARKER_TOKENS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip

# Words with a leading space, digits one by one, runs of punctuation, runs of white space.
_SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = """\
{%- set ns = namespace(system='') %}
{%- if messages and messages[0].role == 'system' %}
{%- set ns.system = messages[0].content %}
{%- endif %}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if ns.system %}{{- ns.system + '\\n\\n' }}{% endif %}
{{- '# Tools\\n\\nYou may call these functions:\\n<tools>\\n' }}
{%- for tool in tools %}{{- tool | tojson }}{{- '' if loop.last else '\\n' }}{% endfor %}
{{- '\\n</tools>\\n\\nTo call one, answer with its name and arguments as JSON:\\n<tool_call>\\n' }}
{{- '{"name": <function-name>, "arguments": <arguments-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif ns.system %}
{{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function if call.function else call %}
{{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
{{- '\\n</tool_response><|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE; digits are single tokens, which makes arithmetic learnable."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKER_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in MARKER_TOKENS])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token}")
    return found


def tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }


def encode_segments(tokenizer: Tokenizer, segments: list[Segment]) -> tuple[list[int], list[bool]]:
    """Token ids of a document and which of them carry loss."""
    ids: list[int] = []
    learn: list[bool] = []
    for text, wanted in segments:
        new = tokenizer.encode(text, add_special_tokens=False).ids
        ids += new
        learn += [wanted] * len(new)
    return ids, learn


def _pack_shard(seed: int, *, tokenizer_json: str, rows: int, row_tokens: int) -> np.ndarray:
    """[rows, 2, row_tokens] uint16: token ids, and 1 where a token carries loss.

    A row begins with a new document and is padded when the next one does not fit.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json)
    pad = token_id(tokenizer, END_OF_TEXT)
    rng = random.Random(seed)
    packed = np.zeros((rows, 2, row_tokens), dtype=np.uint16)
    packed[:, 0] = pad
    ids, learn = encode_segments(tokenizer, conversation(rng))
    for row in packed:
        used = 0
        while used + len(ids) <= row_tokens or used == 0:
            end = min(used + len(ids), row_tokens)
            row[0, used:end] = ids[: end - used]
            row[1, used:end] = learn[: end - used]
            used = end
            ids, learn = encode_segments(tokenizer, conversation(rng))
    return packed


def build_corpus(
    tokenizer: Tokenizer, *, seed: int, rows: int, row_tokens: int, processes: int
) -> np.ndarray:
    """`rows` packed rows; the result depends on the seed, not on the number of processes."""
    shard_rows = 64
    pack = partial(
        _pack_shard,
        tokenizer_json=tokenizer.to_str(),
        rows=shard_rows,
        row_tokens=row_tokens,
    )
    seeds = [seed * 1_000_003 + i for i in range(-(-rows // shard_rows))]
    if processes <= 1:
        return np.concatenate([pack(s) for s in seeds])[:rows]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return np.concatenate(pool.map(pack, seeds))[:rows]

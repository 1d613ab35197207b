"""The calls into xgrammar's compiler, for this process and for the one that is bounded."""

from __future__ import annotations

import re
from typing import Any

import xgrammar

_LOG_PREFIX = re.compile(r"^\[[\d:]+\] \S+:\d+: (Check failed: \(.*?\) is false: )?", re.DOTALL)
MAX_ERROR_CHARS = 500


def compile_with(compiler: Any, kind: str, text: str) -> Any:
    """An xgrammar.CompiledGrammar. Raises RuntimeError or ValueError for a bad grammar."""
    match kind:
        case "json_schema":
            # One line, fixed separators: with free white space small models loop in it.
            return compiler.compile_json_schema(text, any_whitespace=False)
        case "regex":
            return compiler.compile_regex(text)
        case "grammar":
            return compiler.compile_grammar(text)
        case "structural_tag":
            return compiler.compile_structural_tag(text)
    raise ValueError(f"unknown kind of grammar: {kind}")


def error_text(error: BaseException) -> str:
    """The compiler's message without its source position."""
    return _LOG_PREFIX.sub("", str(error)).strip()[:MAX_ERROR_CHARS]


def tokenizer_info(token_bytes: list[bytes], stop_token_ids: list[int]) -> Any:
    """An xgrammar.TokenizerInfo.

    token_bytes: what each token id of the model writes; ids with b"" are never allowed (special
    tokens, padding), unless they are stop tokens.
    """
    return xgrammar.TokenizerInfo(
        token_bytes,
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=len(token_bytes),
        stop_token_ids=stop_token_ids,
    )

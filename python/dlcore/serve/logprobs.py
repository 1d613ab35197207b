"""Log-probabilities in the forms clients read: chat, legacy completions, prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlcore.outputs import Logprob, LogprobsAtPosition
from dlcore.serve.schemas.chat import TokenLogprob, TopLogprob
from dlcore.serve.schemas.completions import CompletionLogprobs
from dlcore.tokenizer import Tokenizer

# JSON has no infinity; the APIs' convention for "never".
_MIN_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """Names tokens: by their text, or as `token_id:N` where the client asked for it."""

    tokenizer: Tokenizer | None
    as_ids: bool = False

    def name(self, token_id: int, entry: Logprob | None = None) -> str:
        if self.as_ids:
            return f"token_id:{token_id}"
        if entry is not None and entry.decoded_token is not None:
            return entry.decoded_token
        if self.tokenizer is None:
            return f"token_id:{token_id}"
        return self.tokenizer.decode([token_id], skip_special_tokens=False)

    def raw(self, token_id: int) -> list[int] | None:
        """The token's bytes: unlike its name, exact where it is part of a character."""
        return None if self.tokenizer is None else list(self.tokenizer.token_bytes(token_id))


def chat_logprobs(
    token_ids: Sequence[int],
    positions: Sequence[LogprobsAtPosition],
    top: int,
    texts: TokenTexts,
) -> list[TokenLogprob]:
    return [
        _chat_entry(token_id, position, top, texts)
        for token_id, position in zip(token_ids, positions, strict=False)
    ]


def _chat_entry(
    token_id: int, position: LogprobsAtPosition, top: int, texts: TokenTexts
) -> TokenLogprob:
    chosen = position[token_id]
    return TokenLogprob(
        token=texts.name(token_id, chosen),
        logprob=finite(chosen.logprob),
        bytes=texts.raw(token_id),
        top_logprobs=[
            TopLogprob(
                token=texts.name(i, entry), logprob=finite(entry.logprob), bytes=texts.raw(i)
            )
            for i, entry in most_likely(position, top)
        ],
    )


def completion_logprobs(
    token_ids: Sequence[int],
    positions: Sequence[LogprobsAtPosition | None],
    top: int,
    texts: TokenTexts,
    offset: int,
) -> CompletionLogprobs:
    """`offset`: where the first token's text begins. A null position (the first token of an
    echoed prompt) has no probability."""
    result = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
    for token_id, position in zip(token_ids, positions, strict=False):
        entry = None if position is None else position[token_id]
        name = texts.name(token_id, entry)
        result.tokens.append(name)
        result.text_offset.append(offset)
        result.token_logprobs.append(None if entry is None else finite(entry.logprob))
        result.top_logprobs.append(None if position is None else _named(position, top, texts))
        offset += len(name)
    return result


def prompt_logprobs(
    positions: Sequence[LogprobsAtPosition | None] | None, texts: TokenTexts
) -> list[dict[str, dict[str, object]] | None] | None:
    """vLLM's form: per position, token id -> logprob, rank, text."""
    if positions is None:
        return None
    return [None if p is None else _prompt_position(p, texts) for p in positions]


def _prompt_position(
    position: LogprobsAtPosition, texts: TokenTexts
) -> dict[str, dict[str, object]]:
    return {
        str(token_id): {
            "logprob": finite(entry.logprob),
            "rank": entry.rank,
            "decoded_token": texts.name(token_id, entry),
        }
        for token_id, entry in position.items()
    }


def finite(logprob: float) -> float:
    return max(logprob, _MIN_LOGPROB)


def most_likely(position: LogprobsAtPosition, count: int) -> list[tuple[int, Logprob]]:
    return sorted(position.items(), key=lambda item: -item[1].logprob)[:count]


def _named(position: LogprobsAtPosition, top: int, texts: TokenTexts) -> dict[str, float]:
    ranked = most_likely(position, top)
    return {texts.name(i, entry): finite(entry.logprob) for i, entry in ranked}

"""Which tokens one sequence may generate next: its grammar, and free reasoning before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xgrammar

from dlcore.sampling_params import ReasoningSpan
from dlcore.tokenizer import Tokenizer

MaskRow = npt.NDArray[np.int32]  # [ceil(vocab_size / 32)], bit i of word i // 32 = token i


class SequenceRule:
    """Follows the generated tokens. One thread at a time.

    Before the end of the reasoning every token is allowed; the text after it is the grammar's.
    """

    def __init__(
        self,
        grammar: Any,
        stop_token_ids: Sequence[int],
        reasoning: ReasoningSpan | None,
        tokenizer: Tokenizer,
        also_allowed: MaskRow | None = None,
    ) -> None:
        """grammar: xgrammar.CompiledGrammar. `also_allowed`: a mask the grammar's is cut to."""
        self._also_allowed = also_allowed
        self.matcher = xgrammar.GrammarMatcher(grammar, override_stop_tokens=list(stop_token_ids))
        self._tokenizer = tokenizer
        self._reasoning = reasoning
        self._open_id = tokenizer.token_to_id(reasoning.start) if reasoning else None
        self._tail = b""  # end of the reasoning so far, for an end mark of several tokens
        self.is_free = reasoning is not None and reasoning.is_open
        self._may_open = reasoning is not None and not reasoning.is_open

    @property
    def is_complete(self) -> bool:
        """The grammar took a stop token."""
        return not self.is_free and bool(self.matcher.is_terminated())

    @property
    def needs_grammar(self) -> bool:
        """The next mask is the grammar's."""
        return not self.is_free and not self.is_complete

    def accept(self, token_id: int) -> bool:
        """False when the rule does not allow the token."""
        if self.is_free:
            return self._reason(token_id)
        if self._may_open and token_id == self._open_id:
            self.is_free, self._may_open = True, False
            return True
        self._may_open = False
        return bool(self.matcher.accept_token(token_id))

    def fill(self, row: MaskRow) -> None:
        """The mask of the next token."""
        if self.is_free:
            row.fill(-1)
            return
        self.matcher.fill_next_token_bitmask(row.reshape(1, -1), 0)
        self.refine(row)

    def refine(self, row: MaskRow) -> None:
        """What the grammar's mask lacks: the cut, and the reasoning that may begin here."""
        if self._also_allowed is not None:
            row &= self._also_allowed
        if self._may_open and self._open_id is not None:
            bit = np.uint32(1 << (self._open_id % 32))
            row.view(np.uint32)[self._open_id // 32] |= bit

    def _reason(self, token_id: int) -> bool:
        if self._reasoning is None:
            return False
        end = self._reasoning.end.encode()
        self._tail += self._tokenizer.token_bytes(token_id)
        at = self._tail.find(end)
        if at < 0:
            self._tail = self._tail[-len(end) :]
            return True
        self.is_free = False
        rest = self._tail[at + len(end) :].lstrip()
        return not rest or bool(self.matcher.accept_string(rest))

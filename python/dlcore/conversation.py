"""A chat's history, kept short enough for the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from dlcore.sampling_params import ParameterError
from dlcore.tokenizer import Tokenizer

MIN_ANSWER_TOKENS = 16


@dataclass(slots=True)
class Conversation:
    tokenizer: Tokenizer
    max_model_len: int
    system_prompt: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str) -> list[int]:
        """The prompt that asks `text`. Forgets the oldest turns when they no longer fit.

        Raises ParameterError when `text` alone does not.
        """
        self.turns.append({"role": "user", "content": text})
        while True:
            ids = self._render()
            if len(ids) + MIN_ANSWER_TOKENS <= self.max_model_len:
                return ids
            if len(self.turns) == 1:
                self.turns.pop()
                raise ParameterError("prompt", f"{len(ids)} tokens do not fit the model")
            del self.turns[:2]

    def answered(self, text: str) -> None:
        self.turns.append({"role": "assistant", "content": text})

    def reset(self) -> None:
        self.turns.clear()

    def _render(self) -> list[int]:
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        text = self.tokenizer.apply_chat_template([*system, *self.turns])
        return self.tokenizer.encode(text, add_special_tokens=False)

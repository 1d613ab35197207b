from __future__ import annotations

from pathlib import Path

import pytest
import text_models

from dlcore.conversation import MIN_ANSWER_TOKENS, Conversation
from dlcore.sampling_params import ParameterError
from dlcore.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    found = Tokenizer.from_folder(text_models.write_folder(tmp_path, text_models.byte_level()))
    assert found is not None
    return found


def test_what_was_said_is_in_the_next_prompt_until_reset(tokenizer: Tokenizer) -> None:
    chat = Conversation(tokenizer, 10_000, "Be kind.")
    chat.ask("one")
    chat.answered("two")
    text = tokenizer.decode(chat.ask("three"))
    assert [text.find(w) >= 0 for w in ("Be kind.", "one", "two", "three")] == [True] * 4
    chat.reset()
    text = tokenizer.decode(chat.ask("four"))
    assert ("Be kind." in text, "one" in text) == (True, False)


def test_the_oldest_turns_are_forgotten_when_the_model_is_full(tokenizer: Tokenizer) -> None:
    chat = Conversation(tokenizer, 120, "Be kind.")
    for i in range(30):
        ids = chat.ask(f"question {i}")
        assert len(ids) + MIN_ANSWER_TOKENS <= 120
        chat.answered(f"answer {i}")
    text = tokenizer.decode(chat.ask("last"))
    assert "Be kind." in text
    assert "answer 29" in text
    assert "question 0" not in text


def test_a_message_that_never_fits_is_refused_and_leaves_no_trace(tokenizer: Tokenizer) -> None:
    chat = Conversation(tokenizer, 60)
    with pytest.raises(ParameterError, match="do not fit"):
        chat.ask("cat " * 100)
    assert not chat.turns
    assert chat.ask("fine")

"""What a resumable stream shows of its nodes' events, and what it asks the next node for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dlcore.router.resume import ChoiceAbortedError, ResumableStream


def chunk(text: str, ids: list[int] | None, *, index: int = 0, reason: str | None = None) -> bytes:
    choice: dict[str, Any] = {"index": index, "delta": {"content": text}, "finish_reason": reason}
    if ids is not None:
        choice["token_ids"] = ids
    return json.dumps({"id": "node's", "created": 1, "choices": [choice]}).encode()


def role(index: int = 0) -> bytes:
    choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    return json.dumps({"id": "node's", "created": 1, "choices": [choice]}).encode()


def texts(events: bytes) -> list[str]:
    found = [json.loads(line[6:]) for line in events.splitlines() if line]
    return [c["delta"].get("content") for event in found for c in event["choices"]]


def test_half_an_output_is_not_shown() -> None:
    """Two chunks of one output: the ids come with the last, so a cut between them loses both."""
    stream = ResumableStream({})
    assert stream.accept(chunk("a", None)) == b""
    assert "resume_token_ids" not in stream.request("r"), "nothing was shown, nothing is resumed"
    assert stream.accept(chunk("a", None)) == b""
    assert texts(stream.accept(chunk("b", [5, 6]))) == ["a", "b"]
    assert stream.request("r")["resume_token_ids"] == [[5, 6]]


def test_the_role_is_said_once() -> None:
    stream = ResumableStream({})
    assert texts(stream.accept(role())) == [""]
    stream.request("r")
    assert stream.accept(role()) == b""


def test_finished_choices_are_null_and_their_tokens_counted() -> None:
    stream = ResumableStream({"n": 2})
    stream.accept(chunk("x", [1, 2, 3], index=0, reason="stop"))
    stream.accept(chunk("y", [4], index=1))
    assert stream.request("r")["resume_token_ids"] == [None, [4]]
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    event = stream.accept(json.dumps({"choices": [], "usage": usage}).encode())
    assert json.loads(event[6:])["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 8,
        "total_tokens": 17,
    }


def test_every_prompt_has_its_choices() -> None:
    stream = ResumableStream({"prompt": ["a", "b"], "n": 2})
    stream.accept(chunk("x", [1], index=3))
    assert stream.request("r")["resume_token_ids"] == [[], [], [], [1]]
    tokens = ResumableStream({"prompt": [7, 8, 9]})
    tokens.accept(chunk("x", [1]))
    assert tokens.request("r")["resume_token_ids"] == [[1]]


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_node_that_gives_up_has_not_finished(reason: str) -> None:
    stream = ResumableStream({})
    stream.accept(chunk("x", [1]))
    with pytest.raises(ChoiceAbortedError):
        stream.accept(chunk("", [], reason=reason))
    assert stream.request("r")["resume_token_ids"] == [[1]]


def test_another_engines_text_cannot_be_resumed() -> None:
    stream = ResumableStream({})
    assert texts(stream.accept_foreign(chunk("x", None))) == ["x"]
    assert stream.started
    assert not stream.resumable


def test_every_node_samples_with_one_seed() -> None:
    stream = ResumableStream({})
    assert stream.request("r")["seed"] == stream.request("r")["seed"]
    assert ResumableStream({"seed": 7}).request("r")["seed"] == 7


def test_a_router_before_this_one_may_resume_through_it() -> None:
    stream = ResumableStream({"n": 2, "resume_token_ids": [[1, 2], None]})
    stream.accept(chunk("x", [3]))
    assert stream.request("r")["resume_token_ids"] == [[1, 2, 3], None]

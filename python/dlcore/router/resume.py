"""What a stream has delivered so far, and the request that goes on from there.

A dlcore node streams the ids of the tokens behind each output (`return_token_ids`) on the
output's last chunk, and takes `resume_token_ids`: one list a choice, tokens already generated
elsewhere, or null for a choice that is finished. It treats them as its own past (penalties, stop
strings, usage, detokenisation) and streams only what follows. As sampling is keyed by (seed,
position), a seeded or greedy continuation is the very one the lost node would have sent.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dlcore.router.sse import DONE, data_of

SEED_BITS = 62
# A node that ends a choice so did not finish it: it is shutting down, or failed.
UNFINISHED = frozenset({"abort", "error"})


class ChoiceAbortedError(Exception):
    """The node gave up on a choice; another one can go on."""


@dataclass(slots=True)
class _Choice:
    tokens: list[int] = field(default_factory=list)
    finished: bool = False
    opened: bool = False  # the chunk that names the role was sent
    # Chunks of an output whose token ids have not come: a cut here must not show half of it.
    held: list[dict[str, Any]] = field(default_factory=list)


class ResumableStream:
    """One client's stream across nodes. `body` is the client's request, decoded."""

    end_mark = DONE + b"\n\n"
    data_of = staticmethod(data_of)

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body
        self._wants_ids = bool(body.get("return_token_ids"))
        self._choices = [_Choice() for _ in range(_num_choices(body))]
        self._take_clients_own(body.get("resume_token_ids"))
        self._left_out = 0  # tokens of finished choices, which the next node does not count
        self._first: dict[str, Any] | None = None
        self._usage_sent = False
        self._resumable = True
        self._seed = seed_of(body)

    @property
    def started(self) -> bool:
        """True once the client was sent something."""
        return self._first is not None

    @property
    def num_tokens(self) -> int:
        return sum(len(choice.tokens) for choice in self._choices)

    @property
    def resumable(self) -> bool:
        """False once the client has text whose tokens are not known."""
        return self._resumable

    @property
    def complete(self) -> bool:
        """True when only the end-of-stream mark is missing."""
        wants_usage = (self._body.get("stream_options") or {}).get("include_usage")
        finished = all(choice.finished for choice in self._choices)
        return finished and (self._usage_sent or not wants_usage)

    def request(self, request_id: str) -> dict[str, Any]:
        """The body for the next dlcore node."""
        body = {
            **self._body,
            "return_token_ids": True,
            "request_id": request_id,
            "seed": self._seed,
        }
        for choice in self._choices:
            choice.held.clear()
        if any(choice.tokens or choice.finished for choice in self._choices):
            body["resume_token_ids"] = [
                None if choice.finished else choice.tokens for choice in self._choices
            ]
        self._left_out = sum(len(c.tokens) for c in self._choices if c.finished)
        return body

    def accept(self, data: bytes) -> bytes:
        """Notes an event of a dlcore node; returns the events for the client, maybe none.

        Raises ChoiceAbortedError.
        """
        event = msgspec.json.decode(data)
        if not event.get("choices"):
            self._correct(event.get("usage"))
            return self._written(event)
        out = b""
        for choice in event["choices"]:
            for piece in self._note(choice):
                out += self._written({**event, "choices": [piece]})
        return out

    def accept_foreign(self, data: bytes) -> bytes:
        """An event of another engine: passed on as it is; the stream cannot be resumed."""
        self._resumable = False
        return self._written(msgspec.json.decode(data))

    def ends(self, event: bytes) -> bool:
        """Whether the event is the stream's last."""
        return event == DONE

    def _note(self, choice: dict[str, Any]) -> list[dict[str, Any]]:
        """Records one choice's chunk; returns the chunks that may go to the client now."""
        state = self._choice(choice.get("index", 0))
        reason = choice.get("finish_reason")
        if reason in UNFINISHED:
            raise ChoiceAbortedError(f"a choice ended with {reason!r}")
        delta = choice.get("delta")
        if delta is not None and "role" in delta and not delta.get("content") and not reason:
            repeated, state.opened = state.opened, True
            return [] if repeated else [choice]
        state.held.append(choice)
        if "token_ids" not in choice and not reason:
            return []
        state.tokens += choice.get("token_ids") or []
        state.finished = bool(reason)
        ready, state.held = state.held, []
        return ready

    def _correct(self, usage: dict[str, Any] | None) -> None:
        """Usage of the whole stream, not of what this node knows of it."""
        if usage is None:
            return
        self._usage_sent = True
        for name in ("completion_tokens", "total_tokens"):
            if name in usage:
                usage[name] += self._left_out

    def _written(self, event: dict[str, Any]) -> bytes:
        """The event's bytes: one id and one creation time, whichever node it comes from."""
        if not self._wants_ids:
            event.pop("prompt_token_ids", None)
            for choice in event.get("choices", ()):
                choice.pop("token_ids", None)
                choice.pop("prompt_token_ids", None)
        if self._first is None:
            self._first = {key: event[key] for key in ("id", "created") if key in event}
        event.update(self._first)
        return b"data: " + msgspec.json.encode(event) + b"\n\n"

    def _choice(self, index: int) -> _Choice:
        while index >= len(self._choices):
            self._choices.append(_Choice())
        return self._choices[index]

    def _take_clients_own(self, resume: Any) -> None:
        """The client is itself going on with a stream (a router before this one)."""
        if not isinstance(resume, list):
            return
        for choice, tokens in zip(self._choices, resume, strict=False):
            choice.finished = tokens is None
            choice.opened = bool(tokens)
            choice.tokens = list(tokens) if isinstance(tokens, list) else []


def seed_of(body: dict[str, Any]) -> Any:
    """The client's, or one drawn here, so that every node samples alike."""
    seed = body.get("seed")
    return secrets.randbits(SEED_BITS) if seed is None else seed


def _num_choices(body: dict[str, Any]) -> int:
    """Prompts times n; a body that makes no sense is for the node to refuse."""
    n, prompt = body.get("n"), body.get("prompt")
    prompts = 1
    if isinstance(prompt, list) and not all(type(item) is int for item in prompt):
        prompts = len(prompt)
    return prompts * (n if type(n) is int and 0 < n <= 128 else 1)

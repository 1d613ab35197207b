"""What a stream has delivered so far, and the request that goes on from there.

A dlcore node streams the ids of the tokens behind each delta (`return_token_ids`) and takes
`resume_token_ids`: one list a choice, tokens already generated elsewhere. It treats them as its own
past (penalties, stop strings, usage, detokenisation) and streams only what follows. As sampling is
keyed by (seed, position), a seeded or greedy continuation is the very one the lost node would
have sent.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

SEED_BITS = 62


class ResumableStream:
    """One client's stream across nodes. `body` is the client's request, decoded."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body
        self._wants_ids = bool(body.get("return_token_ids"))
        choices = body.get("n") or 1
        self._tokens: list[list[int]] = [[] for _ in range(choices)]
        self._finished = [False] * choices
        self._opened = [False] * choices  # the chunk that names the role was sent
        self._first: dict[str, Any] | None = None
        self._usage_sent = False
        # Drawn here, so that every node samples alike.
        self._seed = body.get("seed")
        if self._seed is None:
            self._seed = secrets.randbits(SEED_BITS)

    @property
    def started(self) -> bool:
        """True once the client was sent something."""
        return self._first is not None

    @property
    def complete(self) -> bool:
        """True when only the end-of-stream mark is missing."""
        wants_usage = (self._body.get("stream_options") or {}).get("include_usage")
        return all(self._finished) and (self._usage_sent or not wants_usage)

    def request(self, request_id: str) -> dict[str, Any]:
        """The body for the next node."""
        body = {
            **self._body,
            "return_token_ids": True,
            "request_id": request_id,
            "seed": self._seed,
        }
        if any(self._tokens) or any(self._finished):
            body["resume_token_ids"] = [
                None if finished else tokens
                for tokens, finished in zip(self._tokens, self._finished, strict=True)
            ]
        return body

    def accept(self, data: bytes) -> bytes | None:
        """Notes an event's tokens; returns the event for the client, or None to keep it back."""
        event = msgspec.json.decode(data)
        kept = [choice for choice in event.get("choices", ()) if self._note(choice)]
        if event.get("choices") and not kept:
            return None
        if event.get("choices"):
            event["choices"] = kept
        if event.get("usage") and not kept:
            self._usage_sent = True
        self._look_like_the_first(event)
        return b"data: " + msgspec.json.encode(event) + b"\n\n"

    def _note(self, choice: dict[str, Any]) -> bool:
        """Records one choice's tokens. False for a repetition the client has seen."""
        index = choice.get("index", 0)
        ids = choice.get("token_ids") if self._wants_ids else choice.pop("token_ids", None)
        if not self._wants_ids:
            choice.pop("prompt_token_ids", None)
        self._tokens[index] += ids or []
        if choice.get("finish_reason"):
            self._finished[index] = True
            return True
        delta = choice.get("delta")
        if delta is None or "role" not in delta or delta.get("content"):
            return True
        repeated, self._opened[index] = self._opened[index], True
        return not repeated

    def _look_like_the_first(self, event: dict[str, Any]) -> None:
        """One id and one creation time for the whole stream, whichever node it comes from."""
        if not self._wants_ids:
            event.pop("prompt_token_ids", None)
        if self._first is None:
            self._first = {key: event[key] for key in ("id", "created") if key in event}
        event.update(self._first)

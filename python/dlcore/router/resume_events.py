"""A stream of named events (/v1/responses, /v1/messages) across nodes, and how it goes on.

As router/resume.py, for one answer: a node closes what it streams of an output with an event that
names the output's tokens (`dlcore.token_ids`), and what precedes it is held until that comes. The
last output is held until the stream's own end, so a stream is either whole or can go on. The next
node begins with the events that open a stream, which the client has; it names the response and
its items anew, which the client must not see.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dlcore.named_event import TOKEN_IDS_EVENT, named_event
from dlcore.router.resume import UNFINISHED, ChoiceAbortedError, seed_of
from dlcore.router.sse import named_data_of

OPENING = frozenset({"response.created", "response.in_progress", "message_start", "ping"})
ENDS = frozenset({"response.completed", "response.incomplete", "message_stop"})
FAILURES = frozenset({"error", "response.failed"})

Event = dict[str, Any]


class ResumableEvents:
    """One client's stream. `body` is the client's request, decoded."""

    end_mark = b""
    data_of = staticmethod(named_data_of)

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body
        self._wants_ids = bool(body.get("return_token_ids"))
        self._tokens: list[int] = _clients_own(body.get("resume_token_ids"))
        self._held: list[Event] = []
        self._response: Event = {}  # id and created_at, as first told
        self._items: dict[int, Event] = {}  # the same of each output item
        self._next_number = 0
        self._opened: set[str] = set()
        self._started = False
        self._complete = False
        self._resumable = True
        self._seed = seed_of(body)

    @property
    def started(self) -> bool:
        """True once the client was sent something."""
        return self._started

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    @property
    def resumable(self) -> bool:
        """False once the client has events whose tokens are not known."""
        return self._resumable

    @property
    def complete(self) -> bool:
        """True when nothing is missing: the stream's end is its last event."""
        return self._complete

    def request(self, _request_id: str) -> dict[str, Any]:
        """The body for the next dlcore node, which names its answer as it likes."""
        self._held.clear()
        body = {**self._body, "return_token_ids": True, "seed": self._seed}
        if self._tokens:
            body["resume_token_ids"] = [self._tokens]
        return body

    def accept(self, data: bytes) -> bytes:
        """Notes an event of a dlcore node; returns the events for the client, maybe none.

        Raises ChoiceAbortedError.
        """
        event = msgspec.json.decode(data)
        kind = event["type"]
        if kind in FAILURES:
            raise ChoiceAbortedError(f"the stream failed: {data[:300].decode(errors='replace')}")
        if kind in OPENING:
            return self._open(kind, event)
        if kind == TOKEN_IDS_EVENT:
            return self._close_output(event)
        self._held.append(event)
        if kind not in ENDS:
            return b""
        self._complete = True
        return self._flush()

    def accept_foreign(self, data: bytes) -> bytes:
        """An event of another engine: passed on as it is; the stream cannot be resumed."""
        self._resumable = False
        self._started = True
        event = msgspec.json.decode(data)
        self._complete = event.get("type") in ENDS
        return _encoded(event, data)

    def ends(self, event: bytes) -> bool:
        """Whether the event, accepted just now, was the stream's last."""
        return self._complete

    def _open(self, kind: str, event: Event) -> bytes:
        if kind in self._opened:
            return b""
        self._opened.add(kind)
        return self._written(event)

    def _close_output(self, event: Event) -> bytes:
        reason = event["finish_reason"]
        if reason in UNFINISHED:
            raise ChoiceAbortedError(f"the answer ended with {reason!r}")
        if self._wants_ids:
            self._held.append(event)
        if reason is not None:
            return b""
        self._tokens += event["token_ids"]
        return self._flush()

    def _flush(self) -> bytes:
        held, self._held = self._held, []
        return b"".join([self._written(event) for event in held])

    def _written(self, event: Event) -> bytes:
        self._started = True
        self._keep_names(event)
        if "sequence_number" in event:
            event["sequence_number"] = self._next_number
            self._next_number += 1
        return _encoded(event, msgspec.json.encode(event))

    def _keep_names(self, event: Event) -> None:
        """The names that the first node gave, whichever node the event comes from."""
        response = event.get("response")
        if response is not None:
            self._response = self._response or _only(response, "id", "created_at")
            response.update(self._response)
            for i, item in enumerate(response.get("output") or ()):
                item.update(self._items.get(i, {}))
        item, index = event.get("item"), event.get("output_index")
        if index is None:
            return
        if item is not None:
            item.update(self._items.setdefault(index, _only(item, "id", "call_id")))
        if "item_id" in event:
            event["item_id"] = self._items.get(index, {}).get("id", event["item_id"])


def _only(fields: Event, *names: str) -> Event:
    return {name: fields[name] for name in names if name in fields}


def _encoded(event: Event, data: bytes) -> bytes:
    name = event.get("type")
    if isinstance(name, str):
        return named_event(name, data)
    return b"data: " + data + b"\n\n"


def _clients_own(resume: Any) -> list[int]:
    """The client is itself going on with a stream (a router before this one)."""
    given = isinstance(resume, list) and len(resume) == 1 and isinstance(resume[0], list)
    return list(resume[0]) if given else []

"""Server-sent events that have a name, as /v1/responses and /v1/messages stream them."""

from __future__ import annotations

# Closes what a node streamed of an output and names the tokens behind it, for who asked for them.
TOKEN_IDS_EVENT = "dlcore.token_ids"


def named_event(name: str, data: bytes) -> bytes:
    """data: JSON."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"

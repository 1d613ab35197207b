"""Tickets: what a prefill node hands a client so that a decode node can fetch the prompt's KV.

A ticket is opaque to the client and signed with the deployment's key, so a decode node connects
only where a prefill node of the same deployment told it to.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec
import numpy as np

MAX_TICKET_CHARS = 16_384
_PURPOSE = b"dlcore kv ticket v1"


class TicketError(ValueError):
    """The ticket is not one of this deployment's, or not for this prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTicket:
    """`endpoints`: where the lease is served, one per transport; `first_token`: None in a ticket
    granted before it was computed; `expires`: unix seconds."""

    endpoints: tuple[str, ...]
    lease_id: int
    epoch: int
    num_tokens: int
    prompt_hash: str
    first_token: int | None
    expires: float

    @property
    def expired(self) -> bool:
        return time.time() >= self.expires


def prompt_hash(prompt_token_ids: Sequence[int], cache_salt: str = "") -> str:
    """Names a prompt: equal for equal token ids under the same salt."""
    digest = hashlib.sha256(cache_salt.encode("utf-8") + b"\0")
    digest.update(np.asarray(prompt_token_ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def sign_ticket(ticket: KvTicket, key: bytes) -> str:
    payload = base64.urlsafe_b64encode(msgspec.json.encode(asdict(ticket)))
    return f"{payload.decode()}.{_signature(payload, key)}"


def open_ticket(text: str, key: bytes) -> KvTicket:
    """Raises TicketError unless `text` was signed with `key`. It may have expired."""
    payload, _, signature = text.partition(".")
    known = len(text) <= MAX_TICKET_CHARS and hmac.compare_digest(
        signature.encode(), _signature(payload.encode(), key).encode()
    )
    if not known:
        raise TicketError("the ticket is not signed with this deployment's key")
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(payload), type=KvTicket)
    except (msgspec.MsgspecError, binascii.Error) as error:  # another version's
        raise TicketError(f"the ticket cannot be read: {error}") from None


def _signature(payload: bytes, key: bytes) -> str:
    own_key = hmac.digest(key, _PURPOSE, "sha256")
    return hmac.new(own_key, payload, hashlib.sha256).hexdigest()

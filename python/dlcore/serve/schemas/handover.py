"""/pd/free: the hand-over between prefill and decode nodes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class FreeRequest(Struct, kw_only=True):
    """`ticket`: of a prefill node's answer."""

    ticket: Annotated[str, Meta(max_length=16_384)]


class FreeResponse(Struct, kw_only=True):
    """`released`: false when the lease had ended before."""

    released: bool

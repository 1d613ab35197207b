"""Lists in pages, as the OpenAI APIs cut them: `limit` and `after` an id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from starlette.requests import Request

from dlcore.serve.errors import bad_request


class _HasId(Protocol):
    id: str


T = TypeVar("T", bound=_HasId)


def page(items: Sequence[T], request: Request, default_limit: int) -> tuple[list[T], bool]:
    """The items of the page, and whether more follow. Raises ApiError 400."""
    text = request.query_params.get("limit", str(default_limit))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 10_000:
        raise bad_request("limit: must be a number in [1, 10000]", "limit")
    after = request.query_params.get("after")
    begin = 0
    if after is not None:
        begin = next((i + 1 for i, item in enumerate(items) if item.id == after), len(items))
    chosen = list(items[begin : begin + int(text)])
    return chosen, begin + len(chosen) < len(items)

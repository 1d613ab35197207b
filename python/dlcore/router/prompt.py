"""What routing needs to know of a request body, without understanding it."""

from __future__ import annotations

from typing import Any

import msgspec

from dlcore.router.policies import RoutingRequest
from dlcore.router.prefix_index import block_names


def routing_request(body: dict[str, Any], session: str | None) -> RoutingRequest:
    """The prompt as one string, in the order a chat template would lay it out."""
    text = _prompt_text(body)
    salt = body.get("cache_salt")
    user = body.get("user")
    return RoutingRequest(
        size=float(len(text)),
        blocks=block_names(text, salt if isinstance(salt, str) else ""),
        session=session or (user if isinstance(user, str) else None),
    )


def _prompt_text(body: dict[str, Any]) -> str:
    parts = [body[key] for key in ("tools", "system", "instructions") if body.get(key)]
    parts += [body[key] for key in ("messages", "prompt", "input") if body.get(key) is not None]
    return "".join(
        part if isinstance(part, str) else msgspec.json.encode(part).decode() for part in parts
    )

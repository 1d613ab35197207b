"""API keys: every route but liveness needs one, wherever the route came from."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from dlcore.serve.errors import ApiError, send_error
from dlcore.serve.record import SCOPE_KEY

LIVENESS_PATH = "/health"


def load_api_keys(flags: Iterable[str], file: str | None, env: str | None) -> tuple[str, ...]:
    """Keys from flags, a file (one a line) and an environment value (comma separated).

    Raises ValueError for a file that cannot be read or holds no key.
    """
    keys = [key.strip() for key in (*flags, *(env or "").split(","))]
    if file is not None:
        try:
            keys += keys_in_file(file)
        except ValueError as error:
            raise ValueError(f"api_key_file: {error}") from None
    return tuple(dict.fromkeys(key for key in keys if key))


def keys_in_file(file: str) -> list[str]:
    """One or more. Raises ValueError."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"cannot read {file}: {exc}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ValueError(f"{file} holds no key")
    return keys


class ApiKeys:
    """The accepted keys, as digests. Comparing touches all of them, in constant time."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name_of(self, key: bytes) -> str | None:
        """A short name for logs and limits, or None when the key is not accepted."""
        digest = hashlib.sha256(key).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return digest.hex()[:8] if found else None


def presented_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys of `Authorization: Bearer` (OpenAI), `x-api-key` (Anthropic), and the password
    of `Authorization: Basic`, which is what a browser asks its user for."""
    keys = []
    for name, value in headers:
        if name == b"x-api-key":
            keys.append(bytes(value))
        elif name == b"authorization":
            scheme, _, credentials = value.partition(b" ")
            if scheme.lower() == b"bearer":
                keys.append(credentials.strip())
            elif scheme.lower() == b"basic":
                keys.append(_basic_password(credentials))
    return keys[:4]


def _basic_password(credentials: bytes) -> bytes:
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""


class AuthMiddleware:
    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys and scope["path"] != LIVENESS_PATH:
            presented = presented_keys(scope["headers"])
            names = [name for key in presented if (name := self.keys.name_of(key)) is not None]
            if not names:
                error = _unauthorized(scope["path"], given=bool(presented))
                await send_error(send, error, scope["path"])
                return
            scope[SCOPE_KEY].key_name = names[0]
        await self.app(scope, receive, send)


def _unauthorized(path: str, *, given: bool) -> ApiError:
    message = (
        "the API key is not accepted"
        if given
        else "an API key is needed: send `Authorization: Bearer KEY`"
    )
    # On the page made for people, this makes a browser ask for the key (as the password).
    headers = {"www-authenticate": 'Basic realm="dlcore"' if path == "/" else "Bearer"}
    return ApiError(
        401, message, kind="authentication_error", code="invalid_api_key", headers=headers
    )

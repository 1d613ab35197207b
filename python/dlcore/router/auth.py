"""Client keys: every path but liveness needs one when any is set."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from dlcore.serve.auth import LIVENESS_PATH, ApiKeys, presented_keys


class KeyMiddleware:
    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._keys = ApiKeys(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_to_all = scope["type"] != "http" or scope["path"] == LIVENESS_PATH
        if open_to_all or any(self._keys.name_of(key) for key in presented_keys(scope["headers"])):
            await self._app(scope, receive, send)
            return
        message = "an API key is needed: send `Authorization: Bearer KEY`"
        detail = {"message": message, "type": "authentication_error", "param": None}
        answer = JSONResponse({"error": {**detail, "code": "invalid_api_key"}}, 401)
        await answer(scope, receive, send)

"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from dlcore.serve.context import ServerContext
from dlcore.serve.endpoint import json_response
from dlcore.serve.schemas.models import Model, ModelList


class ModelsEndpoint:
    def __init__(self, ctx: ServerContext) -> None:
        self._ctx = ctx

    async def list(self, request: Request) -> Response:
        models = ModelList(data=[self._model(name) for name in self._ctx.model_names])
        return json_response(models)

    async def get(self, request: Request) -> Response:
        name = self._ctx.resolve_model(request.path_params["model"])
        return json_response(self._model(name))

    def _model(self, name: str) -> Model:
        engine = self._ctx.engine
        return Model(
            id=name,
            created=self._ctx.created,
            root=engine.model_name,
            max_model_len=engine.max_model_len,
        )

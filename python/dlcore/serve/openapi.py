"""GET /openapi.json, generated from the types that requests are decoded with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dlcore.serve.endpoint import json_response
from dlcore.serve.errors import ANTHROPIC_PATH
from dlcore.serve.schemas.descriptions import describe
from dlcore.serve.schemas.system import AnthropicError, OpenAIError
from dlcore.serve.spec import EndpointSpec
from dlcore.version import VERSION

_REF = "#/components/schemas/{name}"
_ERRORS = {
    400: "A field is wrong; the message says which and why.",
    401: "The API key is missing or not accepted.",
    404: "The model, or what was named by its id, does not exist.",
    405: "The method is not allowed.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "A limit or the queue is full; see Retry-After.",
    503: "The server is shutting down or the engine stopped.",
    504: "The request took longer than allowed.",
}
_PATH_PARAM = re.compile(r"\{(\w+)(?::\w+)?\}")


class OpenApiEndpoint:
    """The document is made once, when first asked for."""

    def __init__(self, table: Sequence[EndpointSpec]) -> None:
        self._table = table
        self._document: dict[str, Any] | None = None

    async def get(self, request: Request) -> Response:
        if self._document is None:
            self._document = openapi_document(self._table)
        return json_response(self._document)


def openapi_document(table: Sequence[EndpointSpec]) -> dict[str, Any]:
    types = [t for spec in table for t in (spec.request, spec.response) if t not in (None, dict)]
    types = list(dict.fromkeys([*types, OpenAIError, AnthropicError]))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    describe(components)
    refs = dict(zip(types, schemas, strict=True))
    paths: dict[str, Any] = {}
    for spec in table:
        path = _PATH_PARAM.sub(r"{\1}", spec.path)
        paths.setdefault(path, {})[spec.method.lower()] = _operation(spec, path, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "dlcore", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"x-api-key": []}],
    }


def _operation(spec: EndpointSpec, path: str, refs: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{spec.method.lower()}{re.sub(r'[^a-zA-Z0-9]+', '_', path)}",
        "summary": spec.summary,
        "responses": _responses(spec, refs),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PATH_PARAM.findall(spec.path)
    ]
    parameters += [_query_parameter(name) for name in spec.query]
    if parameters:
        operation["parameters"] = parameters
    if spec.request is not None:
        content = {"application/json": {"schema": refs[spec.request]}}
        operation["requestBody"] = {"required": True, "content": content}
    if spec.upload:
        operation["requestBody"] = {
            "required": True,
            "content": {"multipart/form-data": {"schema": _UPLOAD}},
        }
    return operation


_UPLOAD = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "minLength": 1},
    },
    "required": ["file", "purpose"],
}


def _query_parameter(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if name == "limit":
        schema = {"type": "integer", "minimum": 1, "maximum": 10_000}
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _responses(spec: EndpointSpec, refs: dict[Any, Any]) -> dict[str, Any]:
    ok: dict[str, Any] = {}
    if spec.response is not None:
        schema = {"type": "object"} if spec.response is dict else refs[spec.response]
        ok[spec.media_type] = {"schema": schema}
    else:
        ok[spec.media_type] = {"schema": {"type": "string"}}
    if spec.streams:
        ok["text/event-stream"] = {}
    error_type = AnthropicError if spec.path.startswith(ANTHROPIC_PATH) else OpenAIError
    error = {"application/json": {"schema": refs[error_type]}}
    responses = {"200": {"description": "OK", "content": ok}}
    for status, text in _ERRORS.items():
        responses[str(status)] = {"description": text, "content": error}
    if spec.path in ("/health", "/ready"):
        responses["503"] = {"description": "Not able to serve.", "content": ok}
    return responses

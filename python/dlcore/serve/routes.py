"""Every route of the server, in one table."""

from __future__ import annotations

from starlette.routing import Router

from dlcore.serve.anthropic import MessagesEndpoint
from dlcore.serve.batch_runner import BatchRunner
from dlcore.serve.batches import BatchesEndpoint
from dlcore.serve.chat import ChatEndpoint
from dlcore.serve.completions import CompletionEndpoint
from dlcore.serve.context import ServerContext
from dlcore.serve.errors import ErrorBoundary
from dlcore.serve.files import FilesEndpoint
from dlcore.serve.handover import HandoverEndpoint
from dlcore.serve.models import ModelsEndpoint
from dlcore.serve.openapi import OpenApiEndpoint
from dlcore.serve.playground import PlaygroundEndpoint
from dlcore.serve.responses import ResponsesEndpoint
from dlcore.serve.schemas import anthropic as a
from dlcore.serve.schemas import batches as b
from dlcore.serve.schemas.chat import ChatCompletion, ChatRequest
from dlcore.serve.schemas.completions import Completion, CompletionRequest
from dlcore.serve.schemas.handover import FreeRequest, FreeResponse
from dlcore.serve.schemas.models import Model, ModelList
from dlcore.serve.schemas.responses import ResponseObject, ResponsesRequest
from dlcore.serve.schemas.system import Status, Version
from dlcore.serve.schemas.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from dlcore.serve.spec import EndpointSpec as Spec
from dlcore.serve.system import SystemEndpoint
from dlcore.serve.tokenize import TokenizeEndpoint


def routes(ctx: ServerContext) -> tuple[list[Spec], BatchRunner]:
    """The table, and what runs the batches it starts."""
    generation = _generation(ctx)
    runner = BatchRunner(
        ErrorBoundary(Router([spec.route() for spec in generation])),
        ctx.drain,
        ctx.config.data_path,
        ctx.config.max_concurrent_batch_requests,
    )
    table = [*generation, *_files(ctx, runner), *_batches(ctx, runner), *_tokens(ctx)]
    table += _system(ctx)
    openapi = OpenApiEndpoint(table)
    table.append(
        Spec(method="GET", path="/openapi.json", handler=openapi.get, summary="This document",
             response=dict)
    )  # fmt: skip
    return table, runner


def _generation(ctx: ServerContext) -> list[Spec]:
    chat, completions = ChatEndpoint(ctx), CompletionEndpoint(ctx)
    responses, messages = ResponsesEndpoint(ctx), MessagesEndpoint(ctx)
    stored = "/v1/responses/{response_id}"
    return [
        Spec(method="POST", path="/v1/chat/completions", handler=chat.create, streams=True,
             summary="Answer a conversation", request=ChatRequest, response=ChatCompletion),
        Spec(method="POST", path="/v1/completions", handler=completions.create, streams=True,
             summary="Continue a text", request=CompletionRequest, response=Completion),
        Spec(method="POST", path="/v1/responses", handler=responses.create, streams=True,
             summary="Answer with items", request=ResponsesRequest, response=ResponseObject),
        Spec(method="GET", path=stored, handler=responses.retrieve,
             summary="A stored response", response=ResponseObject),
        Spec(method="DELETE", path=stored, handler=responses.delete,
             summary="Forget a response", response=b.Deleted),
        Spec(method="POST", path=f"{stored}/cancel", handler=responses.cancel,
             summary="Cancel a background response", response=ResponseObject),
        Spec(method="POST", path="/v1/messages", handler=messages.create, streams=True,
             summary="Answer (Anthropic API)", request=a.MessagesRequest,
             response=a.MessageResponse),
        Spec(method="POST", path="/v1/messages/count_tokens", handler=messages.count_tokens,
             summary="Count tokens (Anthropic API)", request=a.CountTokensRequest,
             response=a.TokenCount),
    ]  # fmt: skip


def _files(ctx: ServerContext, runner: BatchRunner) -> list[Spec]:
    files = FilesEndpoint(ctx, runner)
    one = "/v1/files/{file_id}"
    return [
        Spec(method="POST", path="/v1/files", handler=files.upload, upload=True,
             summary="Upload a file", response=b.FileObject),
        Spec(method="GET", path="/v1/files", handler=files.list, summary="Files, newest first",
             response=b.FileList, query=("limit", "after", "purpose")),
        Spec(method="GET", path=one, handler=files.get, summary="A file's record",
             response=b.FileObject),
        Spec(method="DELETE", path=one, handler=files.delete, summary="Delete a file",
             response=b.Deleted),
        Spec(method="GET", path=f"{one}/content", handler=files.content,
             summary="A file's content", media_type="application/octet-stream"),
    ]  # fmt: skip


def _batches(ctx: ServerContext, runner: BatchRunner) -> list[Spec]:
    batches = BatchesEndpoint(ctx, runner)
    one = "/v1/batches/{batch_id}"
    return [
        Spec(method="POST", path="/v1/batches", handler=batches.create,
             summary="Run a file of requests", request=b.BatchRequest, response=b.Batch),
        Spec(method="GET", path="/v1/batches", handler=batches.list,
             summary="Batches, newest first", response=b.BatchList, query=("limit", "after")),
        Spec(method="GET", path=one, handler=batches.get, summary="A batch", response=b.Batch),
        Spec(method="POST", path=f"{one}/cancel", handler=batches.cancel,
             summary="Cancel a batch", response=b.Batch),
    ]  # fmt: skip


def _tokens(ctx: ServerContext) -> list[Spec]:
    tokens, models = TokenizeEndpoint(ctx), ModelsEndpoint(ctx)
    return [
        Spec(method="POST", path="/tokenize", handler=tokens.tokenize, summary="Text to tokens",
             request=TokenizeRequest, response=TokenizeResponse),
        Spec(method="POST", path="/detokenize", handler=tokens.detokenize,
             summary="Tokens to text", request=DetokenizeRequest, response=DetokenizeResponse),
        Spec(method="GET", path="/v1/models", handler=models.list, summary="The served names",
             response=ModelList),
        Spec(method="GET", path="/v1/models/{model:path}", handler=models.get,
             summary="One served name", response=Model),
    ]  # fmt: skip


def _system(ctx: ServerContext) -> list[Spec]:
    system, playground = SystemEndpoint(ctx), PlaygroundEndpoint()
    handover = HandoverEndpoint(ctx)
    return [
        Spec(method="POST", path="/pd/free", handler=handover.free,
             summary="Give up a prefill node's ticket", request=FreeRequest,
             response=FreeResponse),
        Spec(method="GET", path="/health", handler=system.health, summary="Liveness",
             response=Status),
        Spec(method="GET", path="/ready", handler=system.ready, summary="Readiness",
             response=Status),
        Spec(method="GET", path="/metrics", handler=system.metrics, summary="Prometheus metrics",
             media_type="text/plain"),
        Spec(method="GET", path="/version", handler=system.version, summary="Version",
             response=Version),
        Spec(method="GET", path="/", handler=playground.index, summary="The playground",
             media_type="text/html"),
        Spec(method="GET", path="/playground/{name}", handler=playground.file,
             summary="Files of the playground", media_type="text/*"),
    ]  # fmt: skip

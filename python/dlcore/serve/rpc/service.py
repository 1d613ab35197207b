"""The servicer of dlcore.v1.Engine: one coroutine a call, on the engine client's event loop."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any, NoReturn, TypeAlias

import grpc

from dlcore.engine_client import EngineClient, EngineDeadError, QueueFullError
from dlcore.sampling_params import ParameterError
from dlcore.serve.rpc.convert import prompt_of, response_of, sampling_params_of
from dlcore.v1 import engine_pb2 as pb
from dlcore.v1.engine_pb2_grpc import EngineServicer
from dlcore.version import VERSION

Context: TypeAlias = Any  # grpc.aio.ServicerContext, which has no types


class EngineService(EngineServicer):
    """Backpressure is gRPC's: a message is built only when the one before is on its way."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._draining = False

    def drain(self) -> None:
        """New calls get UNAVAILABLE; running ones go on."""
        self._draining = True

    async def Generate(  # noqa: N802 - the name is the proto's
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        request_id = request.request_id or f"grpc-{uuid.uuid4().hex}"
        first = True
        try:
            stream = self._engine.generate(
                prompt_of(request),
                sampling_params_of(request.sampling_params),
                request_id,
                priority=request.priority,
                cache_salt=request.cache_salt,
            )
            # A cancelled call (client gone, deadline passed) cancels this coroutine, which
            # closes the stream, which aborts the request.
            async for output in stream:
                yield response_of(output, first=first)
                first = False
        except (ParameterError, QueueFullError, EngineDeadError) as error:
            await _abort(context, error)

    async def Abort(  # noqa: N802
        self, request: pb.AbortRequest, context: Context
    ) -> pb.AbortResponse:
        for request_id in request.request_ids:
            await self._engine.abort(request_id)
        return pb.AbortResponse()

    async def GetModelInfo(  # noqa: N802
        self, request: pb.GetModelInfoRequest, context: Context
    ) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse(
            model=self._engine.model_name,
            max_model_len=self._engine.max_model_len,
            vocab_size=self._engine.vocab_size,
            has_tokenizer=self._engine.tokenizer is not None,
            version=VERSION,
        )

    async def GetStats(  # noqa: N802
        self, request: pb.GetStatsRequest, context: Context
    ) -> pb.GetStatsResponse:
        stats = {name: float(value) for name, value in self._engine.stats().items()}
        return pb.GetStatsResponse(healthy=self._engine.is_healthy(), stats=stats)


async def _abort(context: Context, error: Exception) -> NoReturn:
    match error:
        case ParameterError():
            code = grpc.StatusCode.INVALID_ARGUMENT
        case QueueFullError():
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
        case _:
            code = grpc.StatusCode.UNAVAILABLE
    await context.abort(code, str(error))
    raise AssertionError("context.abort always raises")

"""The servicer of dlcore.v1.Engine: one coroutine a call, on the engine client's event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any, NoReturn, TypeAlias

import grpc

from dlcore.outputs import RequestOutput
from dlcore.serve.access_log import access_line, access_logger
from dlcore.serve.auth import ApiKeys, presented_keys
from dlcore.serve.context import ServerContext
from dlcore.serve.errors import to_api_error, too_many, unavailable
from dlcore.serve.observe import Observer
from dlcore.serve.record import RequestRecord, new_id
from dlcore.serve.rpc.convert import prompt_of, response_of, sampling_params_of
from dlcore.v1 import engine_pb2 as pb
from dlcore.v1.engine_pb2_grpc import EngineServicer
from dlcore.version import VERSION

Context: TypeAlias = Any  # grpc.aio.ServicerContext, which has no types
Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]

logger = logging.getLogger("dlcore.serve")

SERVICE = pb.DESCRIPTOR.services_by_name["Engine"].full_name
CODES = {
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def key_name(keys: ApiKeys, metadata: Metadata | None) -> str | None:
    """The short name of the key a call carries, None without an accepted one."""
    headers = [(k.encode(), v.encode() if isinstance(v, str) else v) for k, v in metadata or ()]
    names = (keys.name_of(key) for key in presented_keys(headers))
    return next((name for name in names if name is not None), None)


class EngineService(EngineServicer):
    """Backpressure is gRPC's: a message is built only when the one before is on its way.

    Limits, timeouts, the drain, metrics and the access log are those of HTTP.
    """

    def __init__(self, ctx: ServerContext, keys: ApiKeys) -> None:
        self._ctx = ctx
        self._engine = ctx.engine
        self._keys = keys

    async def Generate(  # noqa: N802 - the name is the proto's
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        record = self._record(request, context)
        first = True
        try:
            async with (
                self._admitted(record),
                aclosing(self._outputs(request, record)) as outputs,
            ):
                async for output in outputs:
                    yield response_of(output, record.request_id, first=first)
                    first = False
            record.status = 200
        except Exception as error:
            record.status = to_api_error(error).status
            await _abort(context, error)
        finally:
            # Without a status the call was cancelled: the client left or its deadline passed.
            record.disconnected = record.status == 0
            record.status = record.status or 499
            self._count("Generate", record.status)
            if self._ctx.config.access_log:
                access_logger.info("%s", access_line(record))

    async def Abort(  # noqa: N802
        self, request: pb.AbortRequest, context: Context
    ) -> pb.AbortResponse:
        for request_id in request.request_ids:
            await self._engine.abort(self._engine_id(self._caller(context), request_id))
        self._count("Abort", 200)
        return pb.AbortResponse()

    async def GetModelInfo(  # noqa: N802
        self, request: pb.GetModelInfoRequest, context: Context
    ) -> pb.GetModelInfoResponse:
        self._count("GetModelInfo", 200)
        return pb.GetModelInfoResponse(
            model=self._ctx.model_names[0],
            max_model_len=self._engine.max_model_len,
            vocab_size=self._engine.vocab_size,
            has_tokenizer=self._engine.tokenizer is not None,
            version=VERSION,
        )

    async def GetStats(  # noqa: N802
        self, request: pb.GetStatsRequest, context: Context
    ) -> pb.GetStatsResponse:
        self._count("GetStats", 200)
        stats = {name: float(value) for name, value in self._engine.stats().items()}
        return pb.GetStatsResponse(healthy=self._engine.is_healthy(), stats=stats)

    @asynccontextmanager
    async def _admitted(self, record: RequestRecord) -> AsyncIterator[None]:
        """Raises ApiError while draining and beyond the key's limits."""
        if self._ctx.drain.draining:
            raise unavailable("the server is shutting down")
        caller = record.key_name or record.client
        if (refusal := await self._ctx.limits.take(caller)) is not None:
            raise too_many(refusal[1], refusal[0])
        self._ctx.drain.enter()
        try:
            yield
        finally:
            self._ctx.drain.leave()
            self._ctx.limits.give_back(caller)

    async def _outputs(
        self, request: pb.GenerateRequest, record: RequestRecord
    ) -> AsyncGenerator[RequestOutput, None]:
        """Closing it, as a cancelled call does, aborts the request."""
        await self._ctx.turns.next()
        config = self._ctx.config
        params = sampling_params_of(
            request.sampling_params,
            self._engine.default_sampling_params(),
            config.max_output_tokens,
        )
        observer = Observer(self._ctx.metrics, record, params.n)
        stream = self._engine.generate(
            prompt_of(request),
            params,
            self._engine_id(record.key_name, record.request_id),
            priority=request.priority,
            cache_salt=request.cache_salt,
        )
        async with _closing(stream), aclosing(_bounded(stream, config.request_timeout)) as outputs:
            async for output in outputs:
                observer.on_output(output)
                yield output

    def _record(self, request: pb.GenerateRequest, context: Context) -> RequestRecord:
        # "ipv4:127.0.0.1:40912" without the port, which is another one for every connection.
        return RequestRecord(
            request_id=request.request_id or f"grpc-{new_id()}",
            method="GRPC",
            path=f"/{SERVICE}/Generate",
            client=context.peer().rpartition(":")[0].partition(":")[2],
            key_name=self._caller(context),
            model=self._ctx.model_names[0],
            stream=True,
        )

    def _caller(self, context: Context) -> str:
        return key_name(self._keys, context.invocation_metadata()) or ""

    @staticmethod
    def _engine_id(key_name: str, request_id: str) -> str:
        """A key's ids are its own: another key can neither collide with them nor abort them."""
        return f"grpc-{key_name}-{request_id}"

    def _count(self, method: str, status: int) -> None:
        code = CODES.get(status, grpc.StatusCode.INTERNAL).name
        self._ctx.metrics.count_grpc(SERVICE, method, code)


def _closing(stream: AsyncIterator[RequestOutput]) -> aclosing[Any]:
    return aclosing(stream)  # engines' streams are generators


async def _bounded(
    stream: AsyncIterator[RequestOutput], timeout_s: float
) -> AsyncGenerator[RequestOutput, None]:
    """`stream`, ended by TimeoutError once it took longer in all (0 = however long it takes)."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout_s if timeout_s else None
    while True:
        try:
            left = None if deadline is None else deadline - clock()
            output = await asyncio.wait_for(anext(stream), left)
        except StopAsyncIteration:
            return
        except (asyncio.TimeoutError, TimeoutError):
            raise TimeoutError("the request took longer than allowed") from None
        yield output


async def _abort(context: Context, error: Exception) -> NoReturn:
    answer = to_api_error(error)
    code = CODES.get(answer.status, grpc.StatusCode.INTERNAL)
    details = answer.message if code is grpc.StatusCode.INTERNAL else str(error)
    if "retry-after" in answer.headers:
        context.set_trailing_metadata((("retry-after", answer.headers["retry-after"]),))
    await context.abort(code, details)
    raise AssertionError("context.abort always raises")

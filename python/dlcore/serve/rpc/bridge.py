"""The asyncio servicer behind grpc's threaded server.

grpc.aio's server is not for strangers: up to grpcio 1.85 one call whose method is not UTF-8 ends
it, and memory that its pending requests still write to is freed. The threaded server bears
anything; a call holds one of its threads, and runs on the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, NoReturn, TypeAlias

import grpc

from dlcore.serve.rpc.service import EngineService
from dlcore.v1 import engine_pb2 as pb
from dlcore.v1.engine_pb2_grpc import EngineServicer

Call: TypeAlias = Any  # grpc.ServicerContext, which has no types

_END = object()


class CallAbortedError(Exception):
    """Ends the call with this status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class CallContext:
    """The call as the servicer's coroutines see it."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def peer(self) -> str:
        return str(self._call.peer())

    def invocation_metadata(self) -> Any:
        return self._call.invocation_metadata()

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._call.set_trailing_metadata(metadata)

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise CallAbortedError(code, details)


class Responses(Iterator[Any]):
    """A stream's messages, each fetched when the one before is on its way. A grpc thread iterates;
    `cancel` from any thread."""

    def __init__(
        self, stream: AsyncIterator[Any], call: Call, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._stream = stream
        self._call = call
        self._loop = loop
        self._lock = threading.Lock()
        self._step: Future[Any] | None = None
        self._cancelled = False
        if not call.add_callback(self.cancel):
            self.cancel()

    def __next__(self) -> Any:
        with self._lock:
            if self._cancelled:
                raise StopIteration
            self._step = asyncio.run_coroutine_threadsafe(self._fetch(), self._loop)
        message = _outcome(self._step, self._call)
        if message is _END:
            raise StopIteration
        return message

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._step is not None:
                self._step.cancel()
        with suppress(RuntimeError):  # the loop is closed: so is the stream
            asyncio.run_coroutine_threadsafe(self._close(), self._loop)

    async def _fetch(self) -> Any:
        return await anext(self._stream, _END)

    async def _close(self) -> None:
        if isinstance(self._stream, AsyncGenerator):
            with suppress(RuntimeError):  # it runs: the cancelled step ends it
                await self._stream.aclose()


def _outcome(future: Future[Any], call: Call) -> Any:
    """Raises what ends the call."""
    try:
        return future.result()
    except CallAbortedError as end:
        call.abort(end.code, end.details)
    except CancelledError:
        call.abort(grpc.StatusCode.CANCELLED, "")


class ThreadedEngine(EngineServicer):
    """`service` for a threaded server. Runs it on the loop that makes this object."""

    def __init__(self, service: EngineService) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()

    def Generate(self, request: pb.GenerateRequest, call: Call) -> Responses:  # noqa: N802
        return Responses(self._service.Generate(request, CallContext(call)), call, self._loop)

    def Abort(self, request: pb.AbortRequest, call: Call) -> Any:  # noqa: N802
        return self._answer(self._service.Abort(request, CallContext(call)), call)

    def GetModelInfo(self, request: pb.GetModelInfoRequest, call: Call) -> Any:  # noqa: N802
        return self._answer(self._service.GetModelInfo(request, CallContext(call)), call)

    def GetStats(self, request: pb.GetStatsRequest, call: Call) -> Any:  # noqa: N802
        return self._answer(self._service.GetStats(request, CallContext(call)), call)

    def _answer(self, work: Coroutine[Any, Any, Any], call: Call) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        if not call.add_callback(future.cancel):
            future.cancel()
        return _outcome(future, call)

"""The asyncio client: one channel on one event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

import grpc

from dlcore.client import messages
from dlcore.outputs import RequestOutput
from dlcore.sampling_params import SamplingParams
from dlcore.v1 import engine_pb2 as pb
from dlcore.v1.engine_pb2_grpc import EngineStub


class AsyncClient:
    """`Client` for asyncio: the same methods, the same errors."""

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        root_certificates: bytes | None = None,
        client_certificate: bytes | None = None,
        client_key: bytes | None = None,
    ) -> None:
        if root_certificates is None:
            self._channel = grpc.aio.insecure_channel(address)
        else:
            credentials = messages.channel_credentials(
                root_certificates, client_certificate, client_key
            )
            self._channel = grpc.aio.secure_channel(address, credentials)
        self._stub = EngineStub(self._channel)
        self._metadata = messages.metadata(api_key)

    async def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        timeout: float | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Yields deltas; closing the iterator (or cancelling its task) aborts the request."""
        request = messages.generate_request(prompt, params, request_id, priority, cache_salt)
        call = self._stub.Generate(request, metadata=self._metadata, timeout=timeout)
        try:
            async for response in call:
                yield messages.request_output(response)
        except grpc.RpcError as error:
            raise messages.translate(error) from error
        finally:
            call.cancel()

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
    ) -> RequestOutput:
        """Waits for the whole result."""
        deltas = [delta async for delta in self.stream(prompt, params, timeout=timeout)]
        return messages.collect(deltas, prompt)

    async def abort(self, *request_ids: str) -> None:
        await self._unary(self._stub.Abort, pb.AbortRequest(request_ids=request_ids))

    async def model_info(self) -> pb.GetModelInfoResponse:
        info: pb.GetModelInfoResponse = await self._unary(
            self._stub.GetModelInfo, pb.GetModelInfoRequest()
        )
        return info

    async def stats(self) -> dict[str, float]:
        response = await self._unary(self._stub.GetStats, pb.GetStatsRequest())
        return dict(response.stats)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _unary(self, method: Any, request: Any, timeout: float = 30.0) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=timeout)
        except grpc.RpcError as error:
            raise messages.translate(error) from error

"""The blocking client: one channel, usable from many threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import grpc

from dlcore.client import messages
from dlcore.outputs import RequestOutput
from dlcore.sampling_params import SamplingParams
from dlcore.v1 import engine_pb2 as pb
from dlcore.v1.engine_pb2_grpc import EngineStub


class Client:
    """Talks to `dlcore serve --grpc-port` at `address` ("host:port").

    Errors are those of the in-process API: ParameterError, QueueFullError, EngineDeadError;
    PermissionError for a wrong key, TimeoutError past `timeout` seconds. Without `params`: what
    the model's authors advise, as many tokens as fit. Certificates are PEM, for TLS.
    """

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
            self._channel = grpc.insecure_channel(address)
        else:
            credentials = messages.channel_credentials(
                root_certificates, client_certificate, client_key
            )
            self._channel = grpc.secure_channel(address, credentials)
        self._stub = EngineStub(self._channel)
        self._metadata = messages.metadata(api_key)

    def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        request_id: str = "",
        priority: int = 0,
        cache_salt: str = "",
        timeout: float | None = None,
    ) -> Iterator[RequestOutput]:
        """Yields deltas; closing the iterator aborts the request."""
        request = messages.generate_request(prompt, params, request_id, priority, cache_salt)
        call = self._stub.Generate(request, metadata=self._metadata, timeout=timeout)
        try:
            for response in call:
                yield messages.request_output(response)
        except grpc.RpcError as error:
            raise messages.translate(error) from error
        finally:
            call.cancel()

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
    ) -> RequestOutput:
        """Waits for the whole result."""
        return messages.collect(self.stream(prompt, params, timeout=timeout), prompt)

    def abort(self, *request_ids: str) -> None:
        request = pb.AbortRequest(request_ids=request_ids)
        self._unary(self._stub.Abort, request)

    def model_info(self) -> pb.GetModelInfoResponse:
        info: pb.GetModelInfoResponse = self._unary(
            self._stub.GetModelInfo, pb.GetModelInfoRequest()
        )
        return info

    def stats(self) -> dict[str, float]:
        response = self._unary(self._stub.GetStats, pb.GetStatsRequest())
        return dict(response.stats)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _unary(self, method: Any, request: Any, timeout: float = 30.0) -> Any:
        try:
            return method(request, metadata=self._metadata, timeout=timeout)
        except grpc.RpcError as error:
            raise messages.translate(error) from error

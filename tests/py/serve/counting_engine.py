"""A gRPC server of dlcore.v1 over an engine whose answers are known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from dlcore.outputs import CompletionOutput, Logprob, RequestOutput
from dlcore.sampling_params import SamplingParams
from dlcore.serve.config import ServeConfig
from dlcore.serve.context import ServerContext, make_context
from dlcore.serve.rpc.server import RpcServer


class CountingEngine:
    """Answers 0, 1, 2, ... one token a yield; remembers what it was asked and what was closed."""

    model_name = "counting"
    max_model_len = 128
    vocab_size = 1000
    tokenizer = None

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.calls: list[tuple[str | Sequence[int], SamplingParams, str, int, str]] = []
        self.aborted: list[str] = []
        self.running = 0
        self.error: Exception | None = None
        self.defaults = SamplingParams()

    def default_sampling_params(self) -> SamplingParams:
        return self.defaults

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncIterator[RequestOutput]:
        if self.error is not None:
            raise self.error
        self.calls.append((prompt, params, request_id, priority, cache_salt))
        self.running += 1
        count = params.max_tokens or 10
        try:
            for token in range(count):
                await asyncio.sleep(self.delay_s)
                yield self._delta(request_id, token, last=token == count - 1)
        finally:
            self.running -= 1

    def _delta(self, request_id: str, token: int, *, last: bool) -> RequestOutput:
        completion = CompletionOutput(
            index=0,
            text=f"{token} ",
            token_ids=[token],
            logprobs=[{token: Logprob(-0.5, 1, f"{token} ")}],
            finish_reason="length" if last else None,
        )
        return RequestOutput(request_id, None, [7, 8], [completion], last, num_cached_tokens=1)

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def stats(self) -> dict[str, float]:
        return {"num_running": self.running}

    def is_healthy(self) -> bool:
        return True

    async def close(self) -> None:
        pass


def context_of(engine: CountingEngine, **config: object) -> ServerContext:
    config.setdefault("grpc_port", 0)
    return make_context(engine, ServeConfig(access_log=False, **config))


@asynccontextmanager
async def serving(engine: CountingEngine, **config: object) -> AsyncIterator[str]:
    server = await RpcServer.start(context_of(engine, **config))
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.stop()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 5 s")

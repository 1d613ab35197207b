"""Streamed tokens per second through the HTTP front end alone.

    python tools/bench_http.py --clients 64 256 --tokens-per-chunk 1 8

One server process over an engine that answers at once, one client process that reads raw
sockets. `--tokens-per-chunk 1` is one SSE chunk per token (an engine slower than its
clients); more is what a client slower than the engine gets. Prints one JSON line per case.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from multiprocessing.connection import Connection

import uvloop

from dlcore.engine_client import EngineClient
from dlcore.outputs import CompletionOutput, RequestOutput
from dlcore.resumption import ResumeTokenIds
from dlcore.sampling_params import SamplingParams
from dlcore.serve.config import ServeConfig
from dlcore.serve.http import bind, serve
from dlcore.tokenizer import Tokenizer

TOKEN_TEXT = " word"


class InstantEngine:
    """Yields `tokens_per_output` tokens each time it is asked, with no work of its own."""

    model_name = "instant"
    max_model_len = 1 << 20
    vocab_size = 1 << 15
    kv_peer = None

    def __init__(self, tokens_per_output: int) -> None:
        self._chunk = tokens_per_output

    @property
    def tokenizer(self) -> Tokenizer | None:
        return None

    def default_sampling_params(self) -> SamplingParams:
        return SamplingParams()

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str = "",
        resume_token_ids: ResumeTokenIds | None = None,
        kv_source: object = None,
        hold_kv: bool = False,
    ) -> AsyncIterator[RequestOutput]:
        ids = [1] * self._chunk
        text = TOKEN_TEXT * self._chunk
        left = (params.max_tokens or 1) // self._chunk
        while left:
            left -= 1
            await asyncio.sleep(0)  # the other streams' turn, as between two engine batches
            out = CompletionOutput(0, text, ids, finish_reason=None if left else "length")
            yield RequestOutput(request_id, None, [1], [out], not left)

    async def abort(self, request_id: str) -> None:
        return None

    def stats(self) -> dict[str, float]:
        return {}

    def is_healthy(self) -> bool:
        return True

    async def close(self) -> None:
        return None


def run_server_process(tokens_per_output: int, pipe: Connection) -> None:
    listener = bind("127.0.0.1", 0)
    listener.listen(1024)
    pipe.send(listener.getsockname()[1])

    async def make_engine() -> EngineClient:
        return InstantEngine(tokens_per_output)

    uvloop.run(serve(ServeConfig(access_log=False), make_engine, listener))


async def one_client(port: int, max_tokens: int, requests: int) -> int:
    body = json.dumps({"prompt": [1], "max_tokens": max_tokens, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    words = 0
    for _ in range(requests):
        writer.write(head.encode() + body)
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = await reader.read(1 << 16)
            if not data:
                raise ConnectionError("the server closed the stream")
            words += data.count(b"word") + _cut(tail, data)
            tail = (tail + data)[-8:]
    writer.close()
    return words


def _cut(tail: bytes, data: bytes) -> int:
    """A word cut in two by the reads."""
    return (tail[-3:] + data[:3]).count(b"word")


async def load(port: int, clients: int, max_tokens: int, requests: int) -> tuple[int, float]:
    began = time.perf_counter()
    counts = await asyncio.gather(*(one_client(port, max_tokens, requests) for _ in range(clients)))
    return sum(counts), time.perf_counter() - began


def measure(
    clients: int, tokens_per_chunk: int, max_tokens: int, requests: int
) -> dict[str, float]:
    ours, theirs = mp.Pipe()
    server = mp.Process(target=run_server_process, args=(tokens_per_chunk, theirs), daemon=True)
    server.start()
    try:
        port = ours.recv()
        _wait_until_open(port)
        tokens, seconds = uvloop.run(load(port, clients, max_tokens, requests))
    finally:
        server.terminate()
        server.join()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "clients": clients,
        "tokens_per_chunk": tokens_per_chunk,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(tokens / seconds),
        "chunks_per_s": round(tokens / tokens_per_chunk / seconds),
        "server_cpu_s_all_cases": round(used.ru_utime + used.ru_stime, 2),
    }


def _wait_until_open(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--tokens-per-chunk", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--requests", type=int, default=2, help="per client")
    args = parser.parse_args()
    for clients in args.clients:
        for chunk in args.tokens_per_chunk:
            row = measure(clients, chunk, args.max_tokens, args.requests)
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

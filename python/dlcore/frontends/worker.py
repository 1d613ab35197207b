"""One front-end process: `python -m dlcore.frontends.worker`, started by the supervisor.

It imports everything first, then waits for one line of JSON on stdin that says what to serve; so
processes start while the engine loads its model. "ready" on stdout says that it listens.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import msgspec

from dlcore.async_llm import AsyncLLM
from dlcore.core_request import RequestLimits
from dlcore.engine_client import EngineClient
from dlcore.engine_session import EngineSession, ServedModel, rules_of
from dlcore.frontends.endpoint import Endpoint
from dlcore.frontends.metrics import share_metrics
from dlcore.frontends.remote_core import RemoteCore, RemoteParams
from dlcore.frontends.remote_kv import KvFacts, remote_kv_peer
from dlcore.frontends.remote_limits import RemoteLimits
from dlcore.frontends.remote_rules import RemoteRules
from dlcore.sampling_params import SamplingParams
from dlcore.serve.config import ServeConfig
from dlcore.serve.context import ServerContext
from dlcore.serve.http import bind, run, serve
from dlcore.serve.limits import Limits
from dlcore.serve.logs import configure_logging
from dlcore.serve.response_homes import ResponseHomes
from dlcore.tokenizer import Tokenizer

READY = "ready"
ENGINE_TIMEOUT_S = 60.0


class ModelFacts(msgspec.Struct):
    """`ServedModel` but for the tokenizer, which each process loads itself."""

    name: str
    max_model_len: int
    vocab_size: int
    max_logprobs: int
    device: str
    max_num_seqs: int
    block_size: int
    eos_token_ids: list[int]
    tokenizer_folder: str
    generation_defaults: dict[str, Any]


class WorkerConfig(msgspec.Struct):
    worker: int
    incarnation: int
    folder: str
    public_key: bytes
    port: int
    serve: dict[str, Any]  # ServeConfig by field
    model: ModelFacts
    kv: KvFacts | None = None


def served_model(facts: ModelFacts) -> ServedModel:
    return ServedModel(
        name=facts.name,
        limits=RequestLimits(
            max_model_len=facts.max_model_len,
            vocab_size=facts.vocab_size,
            max_logprobs=facts.max_logprobs,
        ),
        device=facts.device,
        max_num_seqs=facts.max_num_seqs,
        block_size=facts.block_size,
        eos_token_ids=frozenset(facts.eos_token_ids),
        tokenizer=Tokenizer.from_folder(facts.tokenizer_folder),
        default_params=SamplingParams(**facts.generation_defaults),
    )


def serve_config(fields: dict[str, Any]) -> ServeConfig:
    """JSON knows no tuples."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return ServeConfig(**plain)


def main() -> int:
    line = sys.stdin.buffer.readline()
    if not line:
        return 0  # the supervisor went away before there was anything to serve
    config = msgspec.json.decode(line, type=WorkerConfig)
    settings = serve_config(config.serve)
    configure_logging(settings.log_level, access_log=settings.access_log)
    endpoint = Endpoint(folder=config.folder, public_key=config.public_key)
    core = RemoteCore(endpoint, config.worker, config.incarnation)
    if not core.wait_ready(ENGINE_TIMEOUT_S):
        sys.stderr.write("error: the engine process does not answer\n")
        return 1
    model = served_model(config.model)
    session = EngineSession(
        core,
        model,
        RemoteParams,
        rules=RemoteRules(rules_of(model)),
        kv_peer=remote_kv_peer(core, config.kv) if config.kv is not None else None,
    )

    async def make_engine() -> EngineClient:
        return AsyncLLM(session=session)

    def on_ready(ctx: ServerContext) -> None:
        loop = asyncio.get_running_loop()
        share_metrics(loop, ctx.metrics, core, config.worker)
        # The supervisor holds the other end of stdin: without it there is no engine to serve.
        loop.add_reader(sys.stdin.fileno(), os._exit, 1)
        sys.stdout.write(READY + "\n")
        sys.stdout.flush()

    homes = ResponseHomes(config.folder, config.worker)
    limits = RemoteLimits(core, enabled=Limits.of(settings).enabled)
    listener = bind(settings.host, config.port, shared=True)
    with listener:
        served = serve(
            settings, make_engine, listener, homes=homes, limits=limits, on_ready=on_ready
        )
        return run(served)


if __name__ == "__main__":
    sys.exit(main())

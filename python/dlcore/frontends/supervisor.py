"""The engine process of `dlcore serve --frontends N`: the core, and its front ends as children."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import msgspec

from dlcore.config import EngineConfig
from dlcore.engine_factory import tokenizer_folder
from dlcore.frontends.core_server import CoreServer
from dlcore.frontends.messages import MAX_WORKERS
from dlcore.frontends.remote_kv import KvFacts
from dlcore.frontends.worker import READY, ModelFacts, WorkerConfig
from dlcore.kv_link import LocalKvLink
from dlcore.runner import LoadedEngine, build_engine
from dlcore.serve.config import ServeConfig
from dlcore.serve.http import bind_or_explain, checked_keys
from dlcore.serve.limits import Limits
from dlcore.serve.logs import configure_logging
from dlcore.structured.rules import RequestRules
from dlcore.tokenizer import Tokenizer

logger = logging.getLogger("dlcore.frontends")

COMMAND = (sys.executable, "-m", "dlcore.frontends.worker")
RESTART_PAUSE_S = 0.5
CHECK_INTERVAL_S = 0.1


class FrontEnd:
    """One child process, and how often it was started."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.incarnation = 0
        self.process = self._spawn()

    def restart(self) -> None:
        self.incarnation += 1
        self.process = self._spawn()

    def configure(self, config: WorkerConfig) -> None:
        """The child has imported what it needs meanwhile; now it learns what to serve."""
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(config) + b"\n")
        self.process.stdin.flush()

    def wait_ready(self) -> bool:
        """True once it listens; False when it died first."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip() == READY.encode()

    @staticmethod
    def _spawn() -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C reaches the supervisor alone, which passes it on.
        return subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )


class Supervisor:
    """Main thread only."""

    def __init__(self, engine: LoadedEngine, config: ServeConfig, port: int) -> None:
        self._engine = engine
        self._config = config
        self._port = port
        kv = engine.config.kv_transfer
        link = LocalKvLink(engine.core) if kv is not None else None
        self._server = CoreServer(
            engine.core, config.frontends, _rules(engine), link, Limits.of(config)
        )
        self._facts = _facts(engine)
        self._kv = KvFacts.of(kv, link.endpoints) if kv is not None and link is not None else None
        self._signals = 0
        self._signalled = threading.Event()

    def run(self, front_ends: list[FrontEnd]) -> int:
        """Serves until a signal; the exit code as with one process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        self._engine.core.start()
        self._server.start()
        try:
            for front_end in front_ends:
                front_end.configure(self._worker_config(front_end))
            if not all(front_end.wait_ready() for front_end in front_ends):
                return 1
            logger.info(
                "%s is ready at http%s://%s:%d (%d front ends)",
                self._facts.name,
                "s" if self._config.ssl_certfile else "",
                self._config.host,
                self._port,
                len(front_ends),
            )
            return self._supervise(front_ends)
        finally:
            _end(front_ends)
            self._server.stop()
            self._engine.stop()

    def _supervise(self, front_ends: list[FrontEnd]) -> int:
        while not self._signalled.wait(CHECK_INTERVAL_S):
            for front_end in front_ends:
                if front_end.process.poll() is not None:
                    self._replace(front_end)
        return self._drain(front_ends)

    def _replace(self, front_end: FrontEnd) -> None:
        code = front_end.process.returncode
        logger.error("front end %d died (exit code %s); restarting it", front_end.worker, code)
        self._server.forget_worker(front_end.worker, front_end.incarnation)
        time.sleep(RESTART_PAUSE_S)
        front_end.restart()
        front_end.configure(self._worker_config(front_end))
        front_end.wait_ready()

    def _drain(self, front_ends: list[FrontEnd]) -> int:
        """The first signal lets requests finish; each further one is passed on too."""
        passed_on = 0
        while any(front_end.process.poll() is None for front_end in front_ends):
            while passed_on < self._signals:
                passed_on += 1
                for front_end in front_ends:
                    front_end.process.send_signal(signal.SIGTERM)
            time.sleep(CHECK_INTERVAL_S)
        return max((front_end.process.returncode for front_end in front_ends), default=0)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1
        self._signalled.set()

    def _worker_config(self, front_end: FrontEnd) -> WorkerConfig:
        # One of them serves gRPC too, a gRPC port is not shared, and registers the node.
        config = self._config
        if front_end.worker > 0:
            config = replace(config, grpc_port=None, ctrl=None)
        return WorkerConfig(
            worker=front_end.worker,
            incarnation=front_end.incarnation,
            folder=self._server.endpoint.folder,
            public_key=self._server.endpoint.public_key,
            port=self._port,
            serve=asdict(config),
            model=self._facts,
            kv=self._kv,
        )


def run_frontends(engine_config: EngineConfig, serve_config: ServeConfig) -> int:
    """`dlcore serve` with several front ends. 0 after a drain, 1 if it cannot start."""
    configure_logging(serve_config.log_level, access_log=serve_config.access_log)
    if serve_config.frontends > MAX_WORKERS:
        sys.stderr.write(f"error: frontends must be at most {MAX_WORKERS}\n")
        return 1
    config = checked_keys(serve_config)
    listener = bind_or_explain(serve_config) if config is not None else None
    if config is None or listener is None:
        return 1
    port = int(listener.getsockname()[1])
    listener.close()  # it showed that the port is free; the front ends share it
    front_ends = [FrontEnd(worker) for worker in range(config.frontends)]
    try:
        engine = build_engine(engine_config)
    except BaseException:
        _end(front_ends)
        raise
    return Supervisor(engine, config, port).run(front_ends)


def _end(front_ends: list[FrontEnd]) -> None:
    for front_end in front_ends:
        if front_end.process.poll() is None:
            front_end.process.kill()
        front_end.process.wait()


def _rules(engine: LoadedEngine) -> RequestRules:
    model = engine.model_config
    tokenizer = Tokenizer.from_folder(tokenizer_folder(engine))
    return RequestRules(tokenizer, model.vocab_size, model.eos_token_ids)


def _facts(engine: LoadedEngine) -> ModelFacts:
    config, model = engine.config, engine.model_config
    return ModelFacts(
        name=config.model_name,
        max_model_len=model.max_model_len,
        vocab_size=model.vocab_size,
        max_logprobs=config.max_logprobs,
        device=config.device,
        max_num_seqs=engine.options.max_num_seqs,
        block_size=config.block_size,
        eos_token_ids=list(model.eos_token_ids),
        tokenizer_folder=str(tokenizer_folder(engine)),
        generation_defaults=dict(model.generation_defaults),
    )

"""The front end alone: the real HTTP server over a core that runs no model.

    python tools/bench_frontend.py [--clients 64,256] [--step-us 0,4000] [--profile out.svg]

The server is pinned to --server-cores (default 0,1) and the clients to the other cores, so the
figures are those of a front end with two cores. The null core takes `step-us` microseconds a step:
0 shows the most the front end can deliver (a slow reader gets several tokens in a chunk); a
realistic step shows whether every token still gets its own chunk. "cores" says which threads of
the server were busy: where the event loop is near 1 and the engine's thread is not, the engine is
not what limits. "tokens_per_loop_cpu_s" holds on a busy machine too. With --profile, py-spy samples
the server under each load.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from dlcore import _core
from dlcore.async_llm import AsyncLLM
from dlcore.bench.http_load import LoadSpec, run_load
from dlcore.bundled_model import bundled_model_folder
from dlcore.core_request import RequestLimits
from dlcore.engine_client import EngineClient
from dlcore.engine_session import EngineSession, ServedModel
from dlcore.serve.config import ServeConfig
from dlcore.serve.http import run_server
from dlcore.tokenizer import Tokenizer

START_TIMEOUT_S = 60.0
MAX_MODEL_LEN = 4096
BLOCK_SIZE = 16
MAX_NUM_SEQS = 256


def null_session(folder: Path, step_us: int) -> EngineSession:
    """A session like any other, in front of a core that makes tokens up."""
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None
    limits = RequestLimits(max_model_len=MAX_MODEL_LEN, vocab_size=tokenizer.vocab_size)
    options = _core.EngineOptions(
        max_num_batched_tokens=8192,
        max_num_seqs=MAX_NUM_SEQS,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
        vocab_size=limits.vocab_size,
        num_kv_blocks=MAX_NUM_SEQS * MAX_MODEL_LEN // BLOCK_SIZE,
        cache_groups=[("paged", 1, 1, 0)],
    )
    core = _core.Engine(options, device="null", null_step_us=step_us)
    model = ServedModel(
        name="null",
        limits=limits,
        device="null",
        max_num_seqs=MAX_NUM_SEQS,
        block_size=BLOCK_SIZE,
        eos_token_ids=frozenset(),
        tokenizer=tokenizer,
    )
    session = EngineSession(core, model, _core.SamplingParams)
    core.start()
    return session


def serve(port: int, folder: Path, step_us: int) -> int:
    async def make_engine() -> EngineClient:
        return AsyncLLM(session=null_session(folder, step_us))

    config = ServeConfig(port=port, access_log=False, log_level="warning")
    return run_server(config, make_engine)


@contextmanager
def server(args: argparse.Namespace, step_us: int) -> Iterator[tuple[str, int]]:
    """A server process on its own cores; yields its URL and pid."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["taskset", "-c", args.server_cores, sys.executable, __file__,
               "--serve", str(port), "--step-us", str(step_us),
               "--model", str(args.model)]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode}")
        try:
            httpx.get(f"{url}/health", timeout=1.0).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit("the server did not start in time")


def thread_ticks(pid: int) -> Counter[str]:
    """Clock ticks used by thread name; the event loop is the thread named `loop`."""
    found: Counter[str] = Counter()
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        fields = rest.split()
        found["loop" if task.name == str(pid) else name] += int(fields[11]) + int(fields[12])
    return found


def measure(args: argparse.Namespace, step_us: int, clients: int) -> dict[str, object]:
    with server(args, step_us) as (url, pid):
        spec = LoadSpec(
            url=url,
            model="null",
            concurrency=clients,
            requests=clients * args.rounds,
            input_len=args.input_len,
            output_len=args.output_len,
            vocab_size=256,
            processes=args.processes,
        )
        profiler = start_profiler(args, pid, step_us, clients)
        before = thread_ticks(pid)
        result = run_load(spec)
        used = thread_ticks(pid) - before
        if profiler is not None:
            profiler.wait(timeout=60)
    hertz = os.sysconf("SC_CLK_TCK")
    return {
        "step_us": step_us,
        "clients": clients,
        "tokens_per_s": result.output_tokens_per_s,
        "ttft_p50_ms": result.ttft_p50,
        "tpot_p50_ms": result.tpot_p50,
        "itl_p99_ms": result.itl_p99,
        "chunks_per_token": round(result.chunks / max(1, result.tokens), 3),
        "cores": {name: round(n / hertz / result.seconds, 2) for name, n in used.most_common(4)},
        "tokens_per_loop_cpu_s": round(result.tokens * hertz / max(1, used["loop"])),
        "failed": result.failed,
        "errors": result.errors,
    }


def start_profiler(
    args: argparse.Namespace, pid: int, step_us: int, clients: int
) -> subprocess.Popen[bytes] | None:
    if args.profile is None:
        return None
    out = args.profile.with_name(f"{args.profile.stem}-{step_us}us-{clients}{args.profile.suffix}")
    kind = "flamegraph" if out.suffix == ".svg" else "raw"
    command = ["py-spy", "record", "--pid", str(pid), "--duration", str(args.profile_seconds),
               "--rate", "500", "--format", kind, "--output", str(out)]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def int_list(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int_list, default=[64, 256])
    parser.add_argument("--step-us", type=int_list, default=[0, 4000])
    parser.add_argument("--rounds", type=int, default=8, help="requests a client")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--server-cores", default="0,1")
    parser.add_argument("--model", type=Path, default=None, help="folder with a tokenizer")
    parser.add_argument("--profile", type=Path, help=".svg for a flame graph, .txt for stacks")
    parser.add_argument("--profile-seconds", type=int, default=8)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model = args.model or bundled_model_folder()
    if args.serve is not None:
        sys.exit(serve(args.serve, args.model, args.step_us[0]))
    server_cores = set(int_list(args.server_cores))
    os.sched_setaffinity(0, os.sched_getaffinity(0) - server_cores or server_cores)
    for step_us in args.step_us:
        for clients in args.clients:
            print(json.dumps(measure(args, step_us, clients)), flush=True)


if __name__ == "__main__":
    main()

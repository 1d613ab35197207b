"""Throws generated requests at the HTTP server until enough were tried; any 5xx fails.

    python tools/fuzz_http.py [--cases 10000] [--seed 1] [--engine real|fake] [--url URL]

Without --url it starts `dlcore serve` with the bundled model, or the server over the fake engine
of the tests. The requests come from schemathesis, made from /openapi.json: valid ones, and ones
that break it in one place.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"
ROUND_EXAMPLES = 60  # per operation; a round gives some thousand cases
ROUND_LIMIT_S = 900
# Coverage: the edges of every field in turn, thousands of cases whatever ROUND_EXAMPLES is.
PHASES = "coverage,fuzzing"


# What --engine may start. Short answers: the requests are tried, not the model.
SERVERS: dict[str, tuple[str, ...]] = {
    "fake": (str(ROOT / "tests/py/serve/serve_fake.py"),),
    "real": ("-m", "dlcore", "serve", "--port", "0", "--device", "cpu", "--no-access-log",
             "--max-output-tokens", "32"),
    "null": ("-m", "dlcore", "serve", "--port", "0", "--load-format", "null", "--no-access-log"),
}  # fmt: skip


def start_server(data_dir: str, engine: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, *SERVERS[engine], "--data-dir", data_dir],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'python'}{os.pathsep}{ROOT / 'tests/py'}"},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if " is ready at http" in line:
            # Its log must be read on: a full pipe would stop it.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, line.split(" is ready at ")[1].split()[0]
    raise SystemExit("the server did not start")


def run_round(url: str, seed: int, examples: int, phases: str) -> tuple[int, str]:
    """(cases tried, what was found: "" for nothing)."""
    command = [
        sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()",
        "run", f"{url}/openapi.json",
        "--checks", CHECKS, "--max-examples", str(examples), "--seed", str(seed),
        "--phases", phases, "--request-timeout", "20", "--no-color",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:  # it leaves a cache where it runs
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ROUND_LIMIT_S, check=False, cwd=folder
        )
    tried = re.search(r"(\d+) generated", done.stdout)
    if tried is None:
        raise SystemExit(f"schemathesis did not run:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return int(tried.group(1)), done.stdout if done.returncode else ""


def fuzz(url: str, cases: int, seed: int, examples: int, phases: str) -> int:
    total = 0
    while total < cases:
        tried, found = run_round(url, seed, examples, phases)
        total += tried
        seed += 1
        sys.stdout.write(f"{total} cases\n")
        if found:
            sys.stdout.write(found)
            return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the HTTP server from /openapi.json")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=ROUND_EXAMPLES, help="per operation")
    parser.add_argument("--phases", default=PHASES, help="of schemathesis")
    parser.add_argument("--engine", choices=("real", "fake"), default="real")
    parser.add_argument("--url", help="a running server, instead of starting one")
    args = parser.parse_args()
    if args.url:
        return fuzz(args.url, args.cases, args.seed, args.examples, args.phases)
    with tempfile.TemporaryDirectory() as data_dir:
        process, url = start_server(data_dir, args.engine)
        try:
            return fuzz(url, args.cases, args.seed, args.examples, args.phases)
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    sys.exit(main())

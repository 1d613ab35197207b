"""The process that compiles grammars: python -m dlcore.structured.compile_child

Some grammars, hostile or unlucky, take the compiler minutes and gigabytes, and a C++ call
cannot be stopped. In a process of its own it can. JSON lines on stdin: first the tokenizer
({"tokenizer", "memory_bytes"}, answered by {} when ready), then jobs ({"kind", "text"}). Each
is answered by a line on stdout,
{"ok": serialised grammar} or {"error": message}. Ends when stdin does.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import xgrammar

from dlcore.structured.xgrammar_compile import compile_with, error_text

THREADS = 2


def limit_memory(extra_bytes: int) -> None:
    """Lets this process grow by `extra_bytes` and no further."""
    status = Path("/proc/self/status").read_text()
    used_kib = next(int(li.split()[1]) for li in status.splitlines() if li.startswith("VmData"))
    limit = used_kib * 1024 + extra_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
    # What the libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    start = json.loads(sys.stdin.readline())
    info = xgrammar.TokenizerInfo.deserialize_json(start["tokenizer"])
    compiler = xgrammar.GrammarCompiler(info, max_threads=THREADS, cache_enabled=False)
    limit_memory(start["memory_bytes"])
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"ok": compile_with(compiler, job["kind"], job["text"]).serialize_json()}
        except (RuntimeError, ValueError) as error:
            answer = {"error": error_text(error)}
        except MemoryError:
            answer = {"error": "needs too much memory to compile; simplify it"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

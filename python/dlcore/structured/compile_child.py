"""The process that tries grammars out: python -m dlcore.structured.compile_child

Some grammars, hostile or unlucky, take the compiler minutes and gigabytes, and a C++ call
cannot be stopped. In a process of its own it can. What compiles here within its limits is then
compiled again where it is used: that is faster than sending the result across.

JSON lines on stdin: first the tokenizer ({"tokenizer", "memory_bytes"}, answered by {} when
ready), then jobs ({"kind", "text"}). Each is answered by a line on stdout, {"bytes": size} or
{"error": message}. Ends when stdin does.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import xgrammar

from dlcore.structured.xgrammar_compile import compile_with, error_text

THREADS = 2
# What the C++ library says when an allocation or a thread's stack is refused.
OUT_OF_MEMORY = ("std::bad_alloc", "Resource temporarily unavailable")


def limit_memory(extra_bytes: int) -> None:
    """Lets this process grow by `extra_bytes` and no further."""
    status = Path("/proc/self/status").read_text()
    used_kib = next(int(li.split()[1]) for li in status.splitlines() if li.startswith("VmData"))
    limit = used_kib * 1024 + extra_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def answer_to(compiler: Any, job: dict[str, str]) -> dict[str, Any]:
    try:
        return {"bytes": compile_with(compiler, job["kind"], job["text"]).memory_size_bytes}
    except (MemoryError, RuntimeError, ValueError) as error:
        text = error_text(error)
        lacks_memory = isinstance(error, MemoryError) or text in OUT_OF_MEMORY
        return {"error": "needs too much memory to compile; simplify it" if lacks_memory else text}


def main() -> None:
    # What the libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    start = json.loads(sys.stdin.readline())
    info = xgrammar.TokenizerInfo.deserialize_json(start["tokenizer"])
    compiler = xgrammar.GrammarCompiler(info, max_threads=THREADS, cache_enabled=False)
    limit_memory(start["memory_bytes"])
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer_to(compiler, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()

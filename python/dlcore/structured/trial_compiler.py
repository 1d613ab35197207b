"""Tries out in a child process whether a grammar compiles within a time and a memory limit."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from typing import Any

START_TIMEOUT_S = 120.0


class CompileError(ValueError):
    """The grammar is wrong, or too costly to compile."""


class TrialCompiler:
    """One child, started when first needed and again after it had to be killed.

    Thread safety: any thread; grammars are tried one after the other.
    """

    def __init__(self, info: Any, *, timeout_s: float, memory_bytes: int) -> None:
        """info: xgrammar.TokenizerInfo. `timeout_s` is for one grammar, start-up not counted."""
        self._info = info
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def try_out(self, kind: str, text: str) -> int:
        """The compiled size in bytes. Raises CompileError."""
        with self._lock:
            answer = self._ask(json.dumps({"kind": kind, "text": text}))
        if "bytes" not in answer:
            raise CompileError(str(answer["error"]))
        return int(answer["bytes"])

    def close(self) -> None:
        with self._lock:
            self._kill()

    def _ask(self, job: str) -> dict[str, Any]:
        if self._child is None or self._child.poll() is not None:
            self._start()
        answer = self._exchange(job, self._timeout_s)
        if answer is not None:
            return answer
        self._kill()
        return {
            "error": f"takes more than {self._timeout_s:g} s or "
            f"{self._memory_bytes >> 20} MiB to compile; simplify it"
        }

    def _exchange(self, line: str, timeout_s: float) -> dict[str, Any] | None:
        """One line to the child and one back; None when it died or was too slow."""
        child = self._child
        if child is None or child.stdin is None or child.stdout is None:
            return None
        timer = threading.Timer(timeout_s, child.kill)
        timer.start()
        try:
            child.stdin.write(line + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except OSError:
            return None
        finally:
            timer.cancel()
        if not answer.endswith("\n"):
            return None
        decoded: dict[str, Any] = json.loads(answer)
        return decoded

    def _start(self) -> None:
        self._kill()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "dlcore.structured.compile_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        start = {"tokenizer": self._info.serialize_json(), "memory_bytes": self._memory_bytes}
        if self._exchange(json.dumps(start), START_TIMEOUT_S) is None:
            self._kill()
            raise CompileError("the process that compiles grammars did not start")

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

"""Compiled grammars, made once and kept while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

import xgrammar

from dlcore.structured.spec import GrammarSpec
from dlcore.structured.trial_compiler import CompileError, TrialCompiler
from dlcore.structured.xgrammar_compile import compile_with, error_text

COMPILE_TIMEOUT_S = 10.0
COMPILE_MEMORY_BYTES = 2 << 30
CACHE_BYTES = 64 << 20
MAX_GRAMMAR_BYTES = 32 << 20
# Remembered failures: a bad grammar sent again and again costs nothing.
MAX_REMEMBERED_ERRORS = 256
COMPILE_THREADS = 2


class GrammarCompiler:
    """`compile` blocks; call it off the event loop.

    Thread safety: any thread. Threads that want the same grammar wait for one compilation.
    """

    def __init__(
        self,
        info: Any,
        *,
        timeout_s: float = COMPILE_TIMEOUT_S,
        memory_bytes: int = COMPILE_MEMORY_BYTES,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """info: xgrammar.TokenizerInfo."""
        self._compiler = xgrammar.GrammarCompiler(
            info, max_threads=COMPILE_THREADS, cache_enabled=False
        )
        self._trial = TrialCompiler(info, timeout_s=timeout_s, memory_bytes=memory_bytes)
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._grammars: OrderedDict[GrammarSpec, Any] = OrderedDict()  # oldest use first
        self._errors: OrderedDict[GrammarSpec, str] = OrderedDict()
        self._in_work: dict[GrammarSpec, Future[Any]] = {}

    def compile(self, spec: GrammarSpec) -> Any:
        """An xgrammar.CompiledGrammar. Raises CompileError."""
        with self._lock:
            known = self._known(spec)
            if known is not None:
                return known
            future = self._in_work.get(spec)
            mine = future is None
            if future is None:
                future = self._in_work[spec] = Future()
        if mine:
            self._work(spec, future)
        return future.result()

    @property
    def num_cached(self) -> int:
        return len(self._grammars)

    @property
    def cached_bytes(self) -> int:
        return sum(grammar.memory_size_bytes for grammar in self._grammars.values())

    def close(self) -> None:
        self._trial.close()

    def _known(self, spec: GrammarSpec) -> Any:
        if spec in self._errors:
            raise CompileError(self._errors[spec])
        if spec in self._grammars:
            self._grammars.move_to_end(spec)
            return self._grammars[spec]
        return None

    def _work(self, spec: GrammarSpec, future: Future[Any]) -> None:
        try:
            grammar = self._compiled(spec)
        except BaseException as error:
            with self._lock:
                del self._in_work[spec]
                if isinstance(error, CompileError):
                    self._errors[spec] = str(error)
                    if len(self._errors) > MAX_REMEMBERED_ERRORS:
                        self._errors.popitem(last=False)
            future.set_exception(error)
            return
        with self._lock:
            del self._in_work[spec]
            self._grammars[spec] = grammar
            while self.cached_bytes > self._cache_bytes:
                self._grammars.popitem(last=False)
        future.set_result(grammar)

    def _compiled(self, spec: GrammarSpec) -> Any:
        if not spec.is_small:
            _check_size(self._trial.try_out(spec.kind, spec.text))
        try:
            grammar = compile_with(self._compiler, spec.kind, spec.text)
        except (RuntimeError, ValueError) as error:
            raise CompileError(error_text(error)) from None
        _check_size(grammar.memory_size_bytes)
        return grammar


def _check_size(size: int) -> None:
    if size > MAX_GRAMMAR_BYTES:
        raise CompileError(
            f"needs {size >> 20} MiB compiled, more than {MAX_GRAMMAR_BYTES >> 20}; simplify it"
        )

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import xgrammar

from dlcore.structured import compiler as module
from dlcore.structured.compiler import GrammarCompiler
from dlcore.structured.spec import GrammarSpec
from dlcore.structured.trial_compiler import CompileError
from dlcore.structured.xgrammar_compile import tokenizer_info

EOS = 256
INFO = tokenizer_info([*(bytes([i]) for i in range(256)), b""], [EOS])
# Takes the compiler far longer than the tests' limit.
SLOW = GrammarSpec(
    "grammar",
    "root ::= r0\n"
    + "".join(f'r{i} ::= [a-z]* r{i + 1} | "x{i}" | ""\n' for i in range(6000))
    + 'r6000 ::= "z"',
)
LARGE = GrammarSpec("regex", "(.{0,10000}){0,10000}")


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(INFO, timeout_s=3.0)
    yield compiler
    compiler.close()


def accepts(grammar: Any, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar)
    return bool(matcher.accept_string(text) and matcher.accept_token(EOS))


@pytest.mark.parametrize("is_small", [True, False])
def test_both_ways_of_compiling_give_the_same_grammar(
    compiler: GrammarCompiler, is_small: bool
) -> None:
    grammar = compiler.compile(GrammarSpec("json_schema", '{"type": "integer"}', is_small))
    assert accepts(grammar, "-12")
    assert not accepts(grammar, "1.5")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "(a"),
        ("regex", "(?=a)b"),
        ("regex", "(" * 100_000 + "a" + ")" * 100_000),
        ("grammar", "root ::= missing"),
        ("grammar", 'other ::= "a"'),
        ("json_schema", '{"type": "nothing"}'),
        ("structural_tag", "{}"),
    ],
)
def test_bad_grammars_raise_and_say_why(compiler: GrammarCompiler, kind: Any, text: str) -> None:
    with pytest.raises(CompileError) as first:
        compiler.compile(GrammarSpec(kind, text))
    assert ".cc:" not in str(first.value)
    with pytest.raises(CompileError, match=r".+"):
        compiler.compile(GrammarSpec(kind, text))


def test_a_grammar_that_takes_too_long_is_given_up_and_the_next_one_works(
    compiler: GrammarCompiler,
) -> None:
    compiler.compile(GrammarSpec("regex", "warm up"))
    started = time.monotonic()
    with pytest.raises(CompileError, match="takes more than"):
        compiler.compile(SLOW)
    assert time.monotonic() - started < 10
    with pytest.raises(CompileError):  # remembered: at once
        compiler.compile(SLOW)
    assert accepts(compiler.compile(GrammarSpec("regex", "a+b")), "aab")


def test_memory_is_bounded() -> None:
    compiler = GrammarCompiler(INFO, timeout_s=60.0, memory_bytes=4 << 20)
    try:
        with pytest.raises(CompileError, match=r"(too much memory to|MiB to) compile; simplify"):
            compiler.compile(LARGE)
    finally:
        compiler.close()


def test_the_compiled_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GRAMMAR_BYTES", 100)
    with pytest.raises(CompileError, match="MiB compiled"):
        GrammarCompiler(INFO).compile(GrammarSpec("json_schema", "{}", True))


def test_a_grammar_is_compiled_once_for_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = GrammarCompiler(INFO)
    compiled = []

    def compile_slowly(spec: GrammarSpec) -> Any:
        compiled.append(spec)
        time.sleep(0.2)
        return compiler_of(spec)

    compiler_of = compiler._compiled
    monkeypatch.setattr(compiler, "_compiled", compile_slowly)
    spec = GrammarSpec("json_schema", '{"type": "null"}', True)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(compiler.compile(spec))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == [spec]
    assert len({id(r) for r in results}) == 1


def test_the_cache_is_bounded_and_keeps_what_was_used_last() -> None:
    compiler = GrammarCompiler(INFO, cache_bytes=20_000)
    specs = [GrammarSpec("json_schema", f'{{"const": {i}}}', True) for i in range(200)]
    first = compiler.compile(specs[0])
    for spec in specs:
        compiler.compile(spec)
        assert compiler.compile(specs[0]) is first
        assert compiler.cached_bytes <= 20_000
    assert 1 < compiler.num_cached < 200

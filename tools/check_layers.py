"""Checks that every file includes or imports only lower layers, and that nothing is circular.

The layers are those of docs/architecture.md, section 2. Exit status 1 and one line per
violation when there are any.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Graph = dict[str, set[str]]

# Directory of cpp/ -> level. A file includes its own directory and lower levels.
CPP_LEVELS = {
    "include": 0,
    "base": 1,
    "device": 2,
    "kv": 3,
    "sched": 4,
    "step": 5,
    "graph": 5,
    "transport": 5,
    "engine": 6,
    "kernels": 0,  # raw pointers and a stream; knows none of the others
    "bind": 7,
}

# First name below dlcore, low to high. A module imports its own level and lower ones.
# Every package is named. A module that is not is an application module (APPLICATION_LEVEL):
# it may use the whole engine, and no part of the model side may use it.
PYTHON_LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"version", "config", "_core"}),
    frozenset(
        {"outputs", "sampling_params", "model_folder", "kv_memory", "kv_transfer", "step_buffers"}
    ),
    frozenset({"parallel"}),
    frozenset({"quant"}),
    frozenset({"ops"}),
    frozenset({"attention"}),
    frozenset({"layers"}),
    frozenset({"models"}),
    frozenset({"loader"}),
    frozenset({"capture", "model_runner", "step_limits"}),
    frozenset({"runner"}),
    frozenset({"APPLICATION", "structured", "v1", "assets"}),
    frozenset({"serve", "client", "bench", "control", "vision"}),
    frozenset({"frontends", "router"}),
    frozenset({"commands"}),
    frozenset({"cli", "__main__"}),
)
# Neighbours that share a wire format, and must not share code.
STRANGERS = ({"client", "serve"}, {"bench", "serve"})
APPLICATION_LEVEL = next(i for i, names in enumerate(PYTHON_LEVELS) if "APPLICATION" in names)

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
CPP_SUFFIXES = {".h", ".cc", ".cu", ".cuh"}


def cpp_directory(path: str) -> str:
    """The directory of cpp/ that owns a path as an include names it."""
    first = path.split("/")[0]
    return "include" if first == "dlcore" else first


def cpp_graph(cpp: Path) -> Graph:
    """File -> files it includes, both as includes name them."""
    graph: Graph = {}
    for path in sorted(p for p in cpp.rglob("*") if p.suffix in CPP_SUFFIXES):
        name = path.relative_to(cpp).as_posix().removeprefix("include/")
        graph[name] = set(INCLUDE.findall(path.read_text()))
    return graph


def check_cpp(graph: Mapping[str, set[str]]) -> Iterator[str]:
    for source, targets in graph.items():
        own = cpp_directory(source)
        if own not in CPP_LEVELS:
            yield f"cpp/{source}: directory '{own}' is in no layer (tools/check_layers.py)"
            continue
        for target in sorted(targets):
            other = cpp_directory(target)
            if own == other or other not in CPP_LEVELS:
                continue
            if CPP_LEVELS[other] >= CPP_LEVELS[own]:
                yield f"cpp/{source}: includes {target}, which is not below {own}/"


def is_type_checking(node: ast.stmt) -> bool:
    """Imports for type checkers alone happen in no running program."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imported_names(body: Iterable[ast.stmt], package: str) -> Iterator[str]:
    for node in body:
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        for name in ("body", "orelse", "handlers", "finalbody"):
            yield from imported_names(getattr(node, name, ()), package)


def python_graph(root: Path) -> Graph:
    """Module -> modules of the package it imports, at any depth of its code."""
    files: dict[str, Path] = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        files[name.removesuffix(".__init__")] = path
    known = {*files, f"{root.name}._core"}
    graph: Graph = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = set()
        for target in imported_names(ast.parse(path.read_text()).body, package):
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target and target != name:
                graph[name].add(target)
    return graph


def first_name(module: str) -> str:
    return module.split(".")[1] if "." in module else "APPLICATION"


def python_level(module: str) -> int:
    name = first_name(module)
    return next((i for i, names in enumerate(PYTHON_LEVELS) if name in names), APPLICATION_LEVEL)


def check_python(graph: Mapping[str, set[str]]) -> Iterator[str]:
    named = frozenset[str]().union(*PYTHON_LEVELS)
    for package in sorted({first_name(m) for m in graph if m.count(".") >= 2} - named):
        yield f"dlcore.{package}: the package is in no layer (tools/check_layers.py)"
    for source, targets in graph.items():
        for target in sorted(targets):
            if "." in target and python_level(target) > python_level(source):
                yield f"{source}: imports {target}, which is above it"
            if {first_name(source), first_name(target)} in STRANGERS:
                yield f"{source}: imports {target}; these two share a wire format alone"


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Some cycle as a path that ends where it began, or nothing."""
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        stack: list[tuple[str, Iterator[str]]] = []
        if start not in done:
            path, stack = [start], [(start, iter(sorted(graph[start])))]
        while stack:
            node, targets = stack[-1]
            target = next((t for t in targets if t in graph and t not in done), None)
            if target is None:
                done.add(node)
                stack.pop()
                path.pop()
            elif target in path:
                return [*path[path.index(target) :], target]
            else:
                path.append(target)
                stack.append((target, iter(sorted(graph[target]))))
    return []


def check(root: Path) -> list[str]:
    """Every violation below a checkout's root, a line each."""
    cpp = cpp_graph(root / "cpp")
    python = python_graph(root / "python" / "dlcore")
    problems = [*check_cpp(cpp), *check_python(python)]
    for kind, graph in (("include", cpp), ("import", python)):
        cycle = find_cycle(graph)
        if cycle:
            problems.append(f"{kind} cycle: {' -> '.join(cycle)}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parent.parent)
    problems = check(parser.parse_args().root)
    for problem in problems:
        sys.stderr.write(problem + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

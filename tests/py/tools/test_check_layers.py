"""The layer check passes on this tree and finds each kind of violation planted in another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import check_layers

ROOT = Path(__file__).resolve().parents[3]

CLEAN = {
    "cpp/include/dlcore/types.h": "#pragma once\n",
    "cpp/base/log.h": '#include "dlcore/types.h"\n',
    "cpp/kv/pool.h": '#include "base/log.h"\n#include <vector>\n',
    "cpp/kv/pool.cc": '#include "kv/pool.h"\n',
    "python/dlcore/__init__.py": "from dlcore.config import X\n",
    "python/dlcore/config.py": "X = 1\n",
    "python/dlcore/ops/norm.py": "from dlcore import _core\nfrom dlcore.config import X\n",
    "python/dlcore/cli.py": "from dlcore.ops import norm\n",
}


def plant(tmp_path: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return check_layers.check(tmp_path)


def test_this_tree_keeps_its_layers() -> None:
    assert check_layers.check(ROOT) == []


def test_a_clean_tree_passes(tmp_path: Path) -> None:
    assert plant(tmp_path, CLEAN) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("cpp/base/log.h", '#include "kv/pool.h"\n', "cpp/base/log.h: includes kv/pool.h"),
        ("cpp/step/a.h", '#include "graph/b.h"\n', "not below step/"),
        ("cpp/include/dlcore/types.h", '#include "base/log.h"\n', "not below include/"),
        ("cpp/misc/a.h", "", "'misc' is in no layer"),
        ("python/dlcore/config.py", "from dlcore.cli import main\n", "imports dlcore.cli"),
        ("python/dlcore/ops/norm.py", "import dlcore.llm\n", "imports dlcore.llm"),
        (
            "python/dlcore/ops/norm.py",
            "def f():\n    from dlcore.models import x\n",
            "imports dlcore.models",
        ),
        ("python/dlcore/ops/norm.py", "from ..serve import x\n", "imports dlcore.serve"),
        ("python/dlcore/newcomer/x.py", "", "dlcore.newcomer: the package is in no layer"),
        ("python/dlcore/serve/x.py", "from dlcore.router import y\n", "imports dlcore.router"),
        ("python/dlcore/serve/x.py", "import dlcore.frontends.y\n", "imports dlcore.frontends.y"),
        ("python/dlcore/structured/x.py", "import dlcore.serve\n", "imports dlcore.serve"),
        ("python/dlcore/client/x.py", "import dlcore.serve\n", "share a wire format alone"),
        ("python/dlcore/router/x.py", "import dlcore.commands\n", "imports dlcore.commands"),
    ],
)
def test_an_upward_edge_is_found(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    above = {
        f"python/dlcore/{module}.py": ""
        for module in (
            "llm",
            "models/__init__",
            "serve/__init__",
            "router/__init__",
            "frontends/y",
            "commands/__init__",
        )
    }
    found = plant(tmp_path, CLEAN | above | {name: text})
    assert any(complaint in problem for problem in found), found


def test_cycles_are_found(tmp_path: Path) -> None:
    found = plant(
        tmp_path,
        CLEAN
        | {
            "cpp/kv/pool.h": '#include "kv/table.h"\n',
            "cpp/kv/table.h": '#include "kv/pool.h"\n',
            "python/dlcore/a.py": "from dlcore.b import x\n",
            "python/dlcore/b.py": "from dlcore.c import x\n",
            "python/dlcore/c.py": "from dlcore import a\n",
        },
    )
    assert "include cycle: kv/pool.h -> kv/table.h -> kv/pool.h" in found
    assert "import cycle: dlcore.a -> dlcore.b -> dlcore.c -> dlcore.a" in found


def test_type_checking_imports_make_no_cycle(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dlcore.b import x\n"
    files = {"python/dlcore/a.py": text, "python/dlcore/b.py": "from dlcore.a import y\n"}
    assert plant(tmp_path, CLEAN | files) == []

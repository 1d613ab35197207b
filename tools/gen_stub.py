"""Writes python/dlcore/_core.pyi from the built extension.

Run it after changing cpp/bind/; tests/py/core/test_stub.py fails until you do.
"""

from __future__ import annotations

from pathlib import Path

from nanobind.stubgen import StubGen

from dlcore import _core

STUB = Path(__file__).resolve().parent.parent / "python" / "dlcore" / "_core.pyi"


def stub_text() -> str:
    """The stub of the extension that is imported now."""
    generator = StubGen(_core, quiet=True)
    generator.put(_core)
    return str(generator.get())


if __name__ == "__main__":
    STUB.write_text(stub_text())

"""Regenerates python/dlcore/v1/*_pb2*.py from engine.proto (needs grpcio-tools)."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = "dlcore/v1/engine.proto"


def generate(out: Path) -> int:
    """Writes the modules below `out`; returns protoc's exit status."""
    arguments = [
        "protoc",
        f"-I{ROOT / 'python'}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        PROTO,
    ]
    return int(protoc.main(arguments))


if __name__ == "__main__":
    sys.exit(generate(ROOT / "python"))

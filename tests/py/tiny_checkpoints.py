"""Tiny checkpoints with goldens, built once by tests/oracle and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ORACLE = Path(__file__).resolve().parents[1] / "oracle"
CACHE = Path(__file__).resolve().parents[2] / "build" / "tiny_checkpoints"


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    name: str
    prompt_ids: list[int]
    completion_ids: list[int]  # greedy, EOS ignored
    top5: list[list[tuple[int, float]]]  # of the first steps: (token id, logprob)
    margins: list[float]


@dataclass(frozen=True, slots=True)
class TinyCheckpoint:
    folder: Path
    prompts: list[GoldenPrompt]


def tiny_checkpoint(family: str, seed: int = 0, dtype: str = "float32") -> TinyCheckpoint:
    """family: "qwen3" or "qwen3_tied"."""
    source = b"".join(path.read_bytes() for path in sorted(ORACLE.glob("*.py")))
    name = f"{hashlib.sha256(source).hexdigest()[:12]}-{seed}-{dtype}"
    folder = CACHE / name / family
    if not (folder / "golden.json").is_file():
        _build(family, seed, dtype, folder)
    golden = json.loads((folder / "golden.json").read_text())
    return TinyCheckpoint(folder, [GoldenPrompt(**prompt) for prompt in golden["prompts"]])


def _build(family: str, seed: int, dtype: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, str(ORACLE / "tiny_models.py"), "--out", scratch]
        command += ["--only", family, "--seed", str(seed), "--dtype", dtype]
        subprocess.run(
            command,
            check=True,
            timeout=600,
            stdout=subprocess.DEVNULL,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "TRANSFORMERS_VERBOSITY": "error",
            },
        )
        try:
            (Path(scratch) / family).rename(folder)
        except OSError:  # another test process was first
            if not (folder / "golden.json").is_file():
                raise

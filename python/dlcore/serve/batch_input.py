"""Reads and checks the input file of a batch."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dlcore.serve.schemas.batches import BatchError, BatchLine

MAX_LINES = 50_000
_MAX_ERRORS = 20
_decoder = msgspec.json.Decoder(BatchLine)


def read_batch_input(path: Path, endpoint: str) -> tuple[list[BatchLine], list[BatchError]]:
    """The requests, and what is wrong with the file (then no request is run)."""
    lines: list[BatchLine] = []
    errors: list[BatchError] = []
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                line = _decoder.decode(raw)
                _check(line, endpoint, seen)
                lines.append(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as exc:
                errors.append(BatchError(code="invalid_line", message=str(exc), line=number))
            if len(errors) >= _MAX_ERRORS or len(lines) > MAX_LINES:
                break
    if len(lines) > MAX_LINES:
        errors.append(BatchError(code="too_many_lines", message=f"at most {MAX_LINES} requests"))
    if not lines and not errors:
        errors.append(BatchError(code="empty_file", message="the file holds no request"))
    return lines, errors


def _check(line: BatchLine, endpoint: str, seen: set[str]) -> None:
    if line.url != endpoint:
        raise ValueError(f"url: must be the batch's endpoint {endpoint}, got {line.url!r}")
    if line.body.get("stream"):
        raise ValueError("body.stream: a batch does not stream")
    if line.custom_id in seen:
        raise ValueError(f"custom_id: {line.custom_id!r} is used twice")
    seen.add(line.custom_id)

"""Where the server's log lines go: text for people, one JSON object a line for access."""

from __future__ import annotations

import logging
import sys

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(level: str, *, access_log: bool) -> None:
    """Raises ValueError for an unknown level. Called once, by the command."""
    if level.upper() not in _LEVELS:
        raise ValueError(f"log_level must be debug, info, warning or error, got {level!r}")
    text = logging.StreamHandler(sys.stderr)
    text.setFormatter(logging.Formatter(_TEXT))
    _attach("dlcore", text, level.upper())
    _attach("uvicorn", text, "WARNING")
    if access_log:
        lines = logging.StreamHandler(sys.stderr)
        lines.setFormatter(logging.Formatter("%(message)s"))
        _attach("dlcore.access", lines, "INFO")


def _attach(name: str, handler: logging.Handler, level: str) -> None:
    logger = logging.getLogger(name)
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False

"""The small chat model that comes with dlcore: what `model=None` means everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dlcore.config import ConfigError, EngineConfig

BUNDLED_MODEL_NAME = "dlcore-demo"
BUNDLED_MODEL_FOLDER = Path(__file__).parent / "assets" / "demo"


def has_bundled_model() -> bool:
    return (BUNDLED_MODEL_FOLDER / "config.json").is_file()


def bundled_model_folder() -> Path:
    """Raises ConfigError when this installation lacks it."""
    if not has_bundled_model():
        raise ConfigError(
            "model", "this installation lacks the bundled model; name a model folder instead"
        )
    return BUNDLED_MODEL_FOLDER


def make_config(model: str | None, options: Mapping[str, Any]) -> EngineConfig:
    """`model=None` is the bundled one. Raises ConfigError for an option there is not."""
    known = {f.name for f in fields(EngineConfig)}
    for name in options:
        if name not in known:
            raise ConfigError(name, f"is not an option; there are: {', '.join(sorted(known))}")
    if model is not None:
        return EngineConfig(model=model, **options)
    named = {"served_model_name": BUNDLED_MODEL_NAME, **options}
    return EngineConfig(model=str(bundled_model_folder()), **named)

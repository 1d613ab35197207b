"""The small chat model that comes with dlcore: what `model=None` means everywhere."""

from __future__ import annotations

from pathlib import Path

from dlcore.config import ConfigError

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

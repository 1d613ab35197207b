"""From options to a running engine and the session in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dlcore import _core
from dlcore.bundled_model import BUNDLED_MODEL_NAME, bundled_model_folder
from dlcore.config import ConfigError, EngineConfig
from dlcore.core_request import RequestLimits
from dlcore.engine_session import EngineSession, ServedModel
from dlcore.model_folder import find_model_folder
from dlcore.runner import LoadedEngine, build_engine
from dlcore.tokenizer import Tokenizer


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


def open_session(config: EngineConfig) -> EngineSession:
    """Loads the model and starts its core. Raises ConfigError, CheckpointError, TokenizerError."""
    loaded = build_engine(config)
    session = EngineSession(
        loaded.core, _served_model(loaded), _core.SamplingParams, keep_alive=loaded
    )
    loaded.core.start()
    return session


def _served_model(loaded: LoadedEngine) -> ServedModel:
    config, model = loaded.config, loaded.model_config
    folder = find_model_folder(config.tokenizer) if config.tokenizer else model.path
    return ServedModel(
        name=config.model_name,
        limits=RequestLimits(
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
            max_logprobs=config.max_logprobs,
        ),
        block_size=config.block_size,
        eos_token_ids=frozenset(model.eos_token_ids),
        tokenizer=Tokenizer.from_folder(folder),
        generation_defaults=model.generation_defaults,
    )

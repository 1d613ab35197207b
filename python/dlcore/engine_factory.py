"""From a configuration to a running engine and the session in front of it."""

from __future__ import annotations

from pathlib import Path

from dlcore import _core
from dlcore.config import EngineConfig
from dlcore.core_request import RequestLimits
from dlcore.engine_session import EngineSession, ServedModel
from dlcore.kv_link import LocalKvLink
from dlcore.kv_peer import KvPeer
from dlcore.model_folder import find_model_folder
from dlcore.runner import LoadedEngine, build_engine, choose_device
from dlcore.sampling_params import SamplingParams
from dlcore.tokenizer import Tokenizer


def open_session(config: EngineConfig) -> EngineSession:
    """Loads the model and starts its core. Raises ConfigError, CheckpointError, TokenizerError."""
    loaded = build_engine(config)
    kv = config.kv_transfer
    session = EngineSession(
        loaded.core,
        _served_model(loaded),
        _core.SamplingParams,
        stop_core=loaded.stop,
        kv_peer=KvPeer(LocalKvLink(loaded.core), kv) if kv is not None else None,
    )
    loaded.core.start()
    return session


def tokenizer_folder(loaded: LoadedEngine) -> Path:
    config = loaded.config
    return find_model_folder(config.tokenizer) if config.tokenizer else loaded.model_config.path


def _served_model(loaded: LoadedEngine) -> ServedModel:
    config, model = loaded.config, loaded.model_config
    return ServedModel(
        name=config.model_name,
        limits=RequestLimits(
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
            max_logprobs=config.max_logprobs,
        ),
        device="null" if config.load_format == "null" else choose_device(config).type,
        max_num_seqs=loaded.options.max_num_seqs,
        block_size=config.block_size,
        eos_token_ids=frozenset(model.eos_token_ids),
        tokenizer=Tokenizer.from_folder(tokenizer_folder(loaded)),
        default_params=SamplingParams(**model.generation_defaults),
    )

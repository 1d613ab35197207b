"""How large steps may be where the configuration leaves it open."""

from __future__ import annotations

from dlcore.config import ConfigError, EngineConfig
from dlcore.ops.wide_linear import TILE

MAX_NUM_SEQS = {"cpu": 256, "cuda": 512}
# On a GPU 33 tiles of 256 tokens: with any even number of tiles of a weight's rows they fill the 66
# pairs of an H100's multiprocessors, round for round.
MAX_NUM_BATCHED_TOKENS = {"cpu": 2048, "cuda": 33 * TILE}

# Tokens of a GPU's step that decodes and prefills: products of about 10 ms, in whole tiles, and no
# fewer than keep the tensor cores busy. A gap between tokens is then a few decode steps long, and a
# small model's fixed cost per step is spread over enough tokens.
MIXED_STEP_S = 0.01
PREFILL_FLOPS = 7e14
MIXED_STEP_RANGE = (3 * TILE, 8 * TILE)


def max_num_batched_tokens(config: EngineConfig, device_type: str, max_model_len: int) -> int:
    """Raises ConfigError for a limit below what a prompt that may not be cut needs."""
    default = MAX_NUM_BATCHED_TOKENS[device_type]
    if not config.enable_chunked_prefill:
        default = max(default, max_model_len)
    max_tokens = config.max_num_batched_tokens or default
    if not config.enable_chunked_prefill and max_tokens < max_model_len:
        raise ConfigError(
            "max_num_batched_tokens",
            f"{max_tokens} is less than max_model_len {max_model_len}, which needs "
            "enable_chunked_prefill=True",
        )
    return max_tokens


def mixed_step_tokens(config: EngineConfig, device_type: str, num_weights: int) -> int:
    """What prompts fill a step with that decodes; 0 = no limit. num_weights: a token meets them."""
    if config.mixed_step_tokens is not None:
        return config.mixed_step_tokens
    told = config.max_prefill_tokens_beside_decodes is not None
    if told or device_type != "cuda" or num_weights == 0:
        return 0
    tokens = MIXED_STEP_S * PREFILL_FLOPS / (2 * num_weights)
    low, high = MIXED_STEP_RANGE
    return min(max(round(tokens / TILE) * TILE, low), high)

"""Qwen3, dense. Grouped-query attention with per-head q/k RMSNorm before rope, SwiGLU, pre-norm.

Source: the Qwen3 technical report (arXiv 2505.09388) and the published checkpoints' configs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlcore.attention import AttentionBackend
from dlcore.config import ConfigError, ModelConfig
from dlcore.layers.attention import GqaAttention
from dlcore.layers.linear import Linear
from dlcore.layers.norm import RMSNorm
from dlcore.layers.rope import build_cos_sin
from dlcore.model_folder import read_positive_int, rope_parameters
from dlcore.ops.begin_step import begin_step
from dlcore.ops.linear import linear, norm_swiglu, residual_linear
from dlcore.ops.report_layer import report_layer
from dlcore.ops.residual_stream import ResidualStream
from dlcore.ops.tile_linear import new_norm_space
from dlcore.quant.fp8 import E4M3
from dlcore.step_buffers import DeviceState, StepBuffers, WantedRows, lazy_zeros


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Config:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    attention_bias: bool

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Qwen3Config:
        if hf.get("use_sliding_window"):
            raise ConfigError(
                "model", "config.json: use_sliding_window must be false; no published Qwen3 sets it"
            )
        if hf.get("hidden_act", "silu") != "silu":
            raise ConfigError("model", f"config.json: hidden_act must be silu: {hf['hidden_act']}")
        sizes = {
            name: read_positive_int(hf, name)
            for name in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
            )
        }
        heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
        if heads % kv_heads:
            raise ConfigError(
                "model",
                f"config.json: num_attention_heads {heads} is no multiple of "
                f"num_key_value_heads {kv_heads}",
            )
        return cls(
            **sizes,
            head_dim=hf.get("head_dim") or sizes["hidden_size"] // heads,
            rms_norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
            attention_bias=bool(hf.get("attention_bias", False)),
        )


class Qwen3MLP(nn.Module):
    def __init__(self, config: Qwen3Config, norm_space: Tensor | None) -> None:
        super().__init__()
        self.norm_space = norm_space
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)
        self.norm_eps = config.rms_norm_eps

    def forward(self, stream: ResidualStream) -> ResidualStream:
        """The stream with the MLP of its RMSNorm added, whose weight is in gate_up_proj."""
        weight = self.gate_up_proj.weight
        inner = norm_swiglu(stream, self.norm_eps, weight, self.norm_space)
        return residual_linear(inner, self.down_proj.weight, None, stream.x)


class Qwen3DecoderLayer(nn.Module):
    def __init__(
        self, config: Qwen3Config, attention: AttentionBackend, norm_space: Tensor | None
    ) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = GqaAttention(
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            norm_eps=config.rms_norm_eps,
            qk_norm=True,
            bias=config.attention_bias,
            backend=attention,
        )
        self.post_attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Qwen3MLP(config, norm_space)

    def forward(
        self,
        stream: ResidualStream,
        step: StepBuffers,
        state: DeviceState,
        cos_sin: Tensor,
        kv_cache: Tensor,
        rows: WantedRows | None = None,
    ) -> ResidualStream:
        """rows: the only ones wanted of the result; keys and values are written for all tokens."""
        stream = self.mlp(self.attn(stream, step, state, cos_sin, kv_cache, rows))
        return stream

    def fold_norms(self) -> None:
        self.input_norm.fold_into(self.attn.qkv_proj)
        self.post_attn_norm.fold_into(self.mlp.gate_up_proj)


class Qwen3ForCausalLM(nn.Module):
    def __init__(
        self,
        config: Qwen3Config,
        attention: AttentionBackend,
        cos_sin: Tensor,
        norm_space: Tensor | None = None,
    ) -> None:
        """norm_space: see ops.linear.norm_swiglu."""
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.cos_sin = cos_sin
        self.uses_fp8_kv_cache = False
        shape = (config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.layers = nn.ModuleList(
            Qwen3DecoderLayer(config, attention, norm_space)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head: nn.Parameter | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Parameter(torch.empty(shape), requires_grad=False)

    def forward(self, step: StepBuffers, state: DeviceState) -> Tensor:
        """See CausalLM: [S, hidden]."""
        stream = ResidualStream(functional.embedding(begin_step(step, state), self.embed_tokens))
        for i, (layer, kv_cache) in enumerate(zip(self.layers, state.kv_caches, strict=True)):
            rows = step.wanted_rows() if layer is self.layers[-1] else None
            stream = layer(stream, step, state, self.cos_sin, kv_cache, rows)
            report_layer(step, i + 1)
        normed: Tensor = self.norm(stream.x)
        return normed

    @property
    def lm_head_weight(self) -> Tensor:
        return self.embed_tokens if self.lm_head is None else self.lm_head

    def compute_logits(self, rows: Tensor) -> Tensor:
        return linear(rows, self.lm_head_weight)

    def weight_map(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {
            "model.embed_tokens.weight": self.embed_tokens,
            "model.norm.weight": self.norm.weight,
        }
        if self.lm_head is not None:
            weights["lm_head.weight"] = self.lm_head
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Qwen3DecoderLayer)
            weights |= _layer_weights(f"model.layers.{i}.", layer, self.config)
        return weights

    def ignored_weights(self) -> frozenset[str]:
        return frozenset({"lm_head.weight"})  # tied checkpoints may hold a copy of the embedding

    def cache_groups(self, block_size: int) -> list[tuple[str, int, int, int]]:
        config = self.config
        entry = 2 * config.num_key_value_heads * config.head_dim * self.kv_cache_dtype.itemsize
        return [("paged", config.num_hidden_layers, entry * block_size, 0)]

    def allocate_kv_caches(self, num_blocks: int, block_size: int) -> tuple[Tensor, ...]:
        config = self.config
        shape = (num_blocks + 1, 2, config.num_key_value_heads, block_size, config.head_dim)
        device = self.embed_tokens.device
        return tuple(lazy_zeros(shape, self.kv_cache_dtype, device) for _ in self.layers)

    @property
    def kv_cache_dtype(self) -> torch.dtype:
        return E4M3 if self.uses_fp8_kv_cache else self.embed_tokens.dtype

    def use_fp8_kv_cache(self) -> None:
        """Keys and values become E4M3, with a scale per layer and KV head."""
        self.uses_fp8_kv_cache = True
        for layer in self.layers:
            cast(Qwen3DecoderLayer, layer).attn.keep_kv_as_e4m3()

    def weights_loaded(self) -> None:
        for layer in self.layers:
            assert isinstance(layer, Qwen3DecoderLayer)
            layer.fold_norms()
            layer.attn.fit_kv_scales()


def _layer_weights(prefix: str, layer: Qwen3DecoderLayer, config: Qwen3Config) -> dict[str, Tensor]:
    attn, mlp = layer.attn, layer.mlp
    q_rows = config.num_attention_heads * config.head_dim
    kv_rows = config.num_key_value_heads * config.head_dim
    assert attn.q_norm is not None
    assert attn.k_norm is not None
    weights: dict[str, Tensor] = {
        "input_layernorm.weight": layer.input_norm.weight,
        "post_attention_layernorm.weight": layer.post_attn_norm.weight,
        "self_attn.q_norm.weight": attn.q_norm,
        "self_attn.k_norm.weight": attn.k_norm,
        "self_attn.o_proj.weight": attn.o_proj.weight,
        "mlp.gate_proj.weight": mlp.gate_up_proj.weight[: config.intermediate_size],
        "mlp.up_proj.weight": mlp.gate_up_proj.weight[config.intermediate_size :],
        "mlp.down_proj.weight": mlp.down_proj.weight,
    }
    bounds = (q_rows, q_rows + kv_rows)
    qkv = attn.qkv_proj.weight.tensor_split(bounds)
    weights |= {f"self_attn.{n}_proj.weight": w for n, w in zip("qkv", qkv, strict=True)}
    if attn.qkv_proj.bias is not None and attn.o_proj.bias is not None:
        biases = attn.qkv_proj.bias.tensor_split(bounds)
        weights |= {f"self_attn.{n}_proj.bias": b for n, b in zip("qkv", biases, strict=True)}
        weights["self_attn.o_proj.bias"] = attn.o_proj.bias
    return {prefix + name: weight for name, weight in weights.items()}


def build(
    config: ModelConfig, attention: AttentionBackend, device: torch.device
) -> Qwen3ForCausalLM:
    qwen3 = Qwen3Config.from_hf(config.hf_config)
    rope = rope_parameters(config.hf_config)
    cos_sin = build_cos_sin(rope, qwen3.head_dim, config.max_model_len, device)
    space = new_norm_space(device)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(qwen3, attention, cos_sin, space)
    model = model.to(getattr(torch, config.dtype)).to_empty(device=device)
    if config.kv_cache_dtype == "fp8":
        model.use_fp8_kv_cache()
    return model

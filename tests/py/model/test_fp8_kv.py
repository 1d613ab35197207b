"""The E4M3 KV cache: what is stored, what attention makes of it, what it costs in memory."""

from __future__ import annotations

import pytest
import torch
from model.random_steps import make_step, naive_attention
from model.test_attention import random_lengths
from tiny_checkpoints import TinyCheckpoint, tiny_checkpoint
from torch import Tensor, nn
from torch.nn import functional

from dlcore.attention import choose_attention, torch_attention
from dlcore.config import ConfigError, EngineConfig
from dlcore.layers.attention import GqaAttention
from dlcore.llm import LLM
from dlcore.model_folder import read_model_config
from dlcore.models import build_model
from dlcore.ops.attention_kernels import NewTokens
from dlcore.ops.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from dlcore.quant.fp8 import E4M3, E4M3_MAX, dequantize, quantize
from dlcore.sampling_params import SamplingParams


def test_rounding_is_to_the_nearest_of_three_bits_and_saturates() -> None:
    values = torch.randn(10_000) * 20
    scales = torch.tensor(0.25)
    back = dequantize(quantize(values, scales), scales, torch.float32)
    normal = values.abs() > 2.0**-6 * 0.25
    assert ((back - values).abs() <= values.abs() / 16)[normal].all()
    assert dequantize(quantize(torch.tensor([1e9]), scales), scales, torch.float32) == 112.0


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_attention_equals_attention_over_the_stored_values(decode: bool, seed: int) -> None:
    queries, lengths = random_lengths(seed, decode)
    case = make_step(seed=seed, query_lens=queries, seq_lens=lengths)
    scales = torch.rand(2, case.kv_cache.shape[2]) + 0.01
    stored = quantize(case.kv_cache, scales[:, :, None, None])
    out = torch_attention.paged_attention(case.q, stored, case.step, case.state, 0.2, scales)
    case.kv_cache = dequantize(stored, scales[:, :, None, None], torch.float32)
    torch.testing.assert_close(out.double(), naive_attention(case, 0.2), atol=2e-5, rtol=1e-4)


def test_the_write_stores_what_the_plain_cache_would_hold_rounded() -> None:
    num_tokens, heads, kv_heads, dim, block_size = 11, 4, 2, 32, 16
    qkv = torch.randn(num_tokens, (heads + 2 * kv_heads) * dim)
    weight = nn.init.normal_(torch.empty(dim))
    cos_sin = torch.randn(64, dim)
    positions = torch.randint(64, (num_tokens,)).int()
    slots = torch.randperm(3 * block_size)[:num_tokens].int()
    slots[-1] = -1
    shape = (4, 2, kv_heads, block_size, dim)
    plain, stored = torch.zeros(shape), torch.zeros(shape).to(E4M3)
    scales = torch.rand(2, kv_heads) + 0.1
    tokens = NewTokens(
        q_weight=weight,
        k_weight=weight,
        eps=1e-6,
        cos_sin=cos_sin,
        positions=positions,
        slot_mapping=slots,
    )
    q = qk_norm_rope_kv_write(qkv, tokens, plain)
    assert torch.equal(q, qk_norm_rope_kv_write(qkv, tokens, stored, scales))
    expected = quantize(plain, scales[:, :, None, None])
    assert torch.equal(stored[:3].view(torch.uint8), expected[:3].view(torch.uint8))


def _attention(seed: int, *, qk_norm: bool, bias: bool) -> GqaAttention:
    """Weights whose heads differ in size by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    attention = GqaAttention(
        hidden_size=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        norm_eps=1e-6,
        qk_norm=qk_norm,
        bias=bias,
        backend=torch_attention.paged_attention,
    )
    for parameter in attention.parameters():
        size = torch.exp(4 * torch.randn(parameter.shape[0], generator=generator))
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(drawn * size.view(-1, *[1] * (parameter.dim() - 1)))
    attention.keep_kv_as_e4m3()
    attention.fit_kv_scales()
    return attention


def _largest_inputs(attention: GqaAttention) -> Tensor:
    """[T, hidden]: normed inputs that drive each row of the projection as far as any can."""
    rows = attention.qkv_proj.weight
    signs = torch.ones(len(rows))
    if attention.qkv_proj.bias is not None:
        signs = attention.qkv_proj.bias.sign()
    worst = rows * (48**0.5 * signs / rows.norm(dim=1))[:, None]
    return torch.cat([worst, torch.randn(500, 48)])


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_scales_let_nothing_saturate_and_waste_no_range(
    seed: int, qk_norm: bool, bias: bool
) -> None:
    attention = _attention(seed, qk_norm=qk_norm, bias=bias)
    x = _largest_inputs(attention)
    qkv = functional.linear(x, attention.qkv_proj.weight, attention.qkv_proj.bias)
    cache = torch.zeros(-(-len(x) // 16) + 1, 2, 2, 16, 16)
    angles = torch.randn(len(x), 8)
    steps = torch.arange(len(x)).int()
    tokens = NewTokens(
        q_weight=attention.q_norm,
        k_weight=attention.k_norm,
        eps=1e-6,
        cos_sin=torch.cat([angles.cos(), angles.sin()], dim=1),
        positions=steps,
        slot_mapping=steps,
    )
    qk_norm_rope_kv_write(qkv, tokens, cache)
    assert attention.kv_scales is not None
    stored = cache.abs().amax(dim=(0, 3, 4)) / attention.kv_scales
    assert (stored <= E4M3_MAX * (1 + 1e-5)).all()
    assert (stored[1] > E4M3_MAX / 2 * (1 - 1e-5)).all()


def test_a_cache_kept_plain_has_no_scales() -> None:
    attention = _attention(0, qk_norm=True, bias=False)
    attention.kv_scales = None
    attention.fit_kv_scales()
    assert attention.kv_scales is None


def test_an_unknown_format_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype: must be one of auto, fp8"):
        EngineConfig(model="m", kv_cache_dtype="int4")
    assert EngineConfig(model="m", kv_cache_dtype="fp8_e4m3").kv_cache_dtype == "fp8"


@pytest.fixture(scope="module")
def checkpoint() -> TinyCheckpoint:
    return tiny_checkpoint("qwen3", 0)


def _prompt_logprobs(checkpoint: TinyCheckpoint, dtype: str, kv_cache_dtype: str) -> Tensor:
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
    prompts = [{"prompt_token_ids": p.prompt_ids} for p in checkpoint.prompts]
    with LLM(
        str(checkpoint.folder),
        device="cpu",
        dtype=dtype,
        max_model_len=512,
        num_kv_blocks=256,
        kv_cache_dtype=kv_cache_dtype,
    ) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    found = []
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.prompt_logprobs is not None
        for token, logprobs in zip(
            prompt["prompt_token_ids"][1:], output.prompt_logprobs[1:], strict=True
        ):
            assert logprobs is not None
            found.append(logprobs[token].logprob)
    return torch.tensor(found)


def test_the_cache_costs_a_few_times_bfloat16s_error(checkpoint: TinyCheckpoint) -> None:
    exact = _prompt_logprobs(checkpoint, "float32", "auto")
    bfloat16 = (_prompt_logprobs(checkpoint, "bfloat16", "auto") - exact).abs().mean()
    fp8 = (_prompt_logprobs(checkpoint, "float32", "fp8") - exact).abs().mean()
    assert 0 < fp8 < 6 * bfloat16


def test_it_halves_bfloat16s_memory(checkpoint: TinyCheckpoint) -> None:
    entries = []
    for kv_cache_dtype in ("auto", "fp8"):
        config = EngineConfig(
            model=str(checkpoint.folder), dtype="bfloat16", kv_cache_dtype=kv_cache_dtype
        )
        model_config = read_model_config(config, "cpu")
        device = torch.device("cpu")
        model = build_model(model_config, choose_attention("auto", device), device)
        ((_, _, num_bytes, _),) = model.cache_groups(16)
        caches = model.allocate_kv_caches(3, 16)
        assert num_bytes * 4 == caches[0].numel() * caches[0].element_size()
        entries.append(num_bytes)
    assert entries[0] == 2 * entries[1]

"""A whole Qwen3 step on the GPU's kernels against the same model in float32 on the CPU."""

from __future__ import annotations

import pytest
import torch

from dlcore.attention import choose_attention
from dlcore.layers.rope import build_cos_sin
from dlcore.models.qwen3 import Qwen3Config, Qwen3ForCausalLM
from dlcore.ops import linear
from dlcore.ops.tile_linear import new_norm_space
from dlcore.step_buffers import DeviceState, StepBuffers
from tests.gpu.paged_case import needs_kernels, relative_error
from tools.kernel_timing import captured

pytestmark = needs_kernels

BLOCK_SIZE, MAX_BLOCKS, MAX_SEQS = 16, 24, 150
CONFIG = Qwen3Config(
    vocab_size=1024,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=128,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    attention_bias=False,
)


def _model(device: torch.device, dtype: torch.dtype, weights: dict) -> Qwen3ForCausalLM:
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    cos_sin = build_cos_sin(rope, CONFIG.head_dim, 512, device)
    model = Qwen3ForCausalLM(
        CONFIG, choose_attention("auto", device), cos_sin, new_norm_space(device)
    )
    for name, parameter in model.named_parameters():
        parameter.data = weights[name].to(device, dtype)
    model.weights_loaded()
    return model


def _step(query_lens: list[int], seq_lens: list[int], kind: str, device: torch.device):
    """A step of sequences in slots 0, 1, ..., whose blocks follow each other, and its state."""
    num_seqs, ints = len(seq_lens), {"dtype": torch.int32, "device": device}
    positions, slots, token_seq = [], [], []
    for seq, (n, length) in enumerate(zip(query_lens, seq_lens, strict=True)):
        positions += range(length - n, length)
        slots += [seq * MAX_BLOCKS * BLOCK_SIZE + p for p in range(length - n, length)]
        token_seq += [seq] * n
    starts = torch.tensor([0, *query_lens]).cumsum(0).tolist()
    header = torch.zeros(16, **ints)
    generator = torch.Generator().manual_seed(len(positions))
    token_ids = torch.randint(CONFIG.vocab_size, (len(positions),), generator=generator)
    return StepBuffers(
        kind=kind,
        arena=header,
        header=header,
        token_ids=token_ids.to(**ints),
        positions=torch.tensor(positions, **ints),
        slot_mapping=torch.tensor(slots, **ints),
        token_seq=torch.tensor(token_seq, **ints),
        query_start_loc=torch.tensor(starts, **ints),
        seq_lens=torch.tensor(seq_lens, **ints),
        seq_slots=torch.arange(num_seqs, **ints),
        logits_indices=torch.tensor([s - 1 for s in starts[1:]], **ints),
        row_start_loc=torch.arange(num_seqs + 1, **ints),
        row_fields=header,
    )


def _state(device: torch.device, dtype: torch.dtype) -> DeviceState:
    tables = torch.arange((MAX_SEQS + 1) * MAX_BLOCKS, dtype=torch.int32, device=device)
    shape = ((MAX_SEQS + 1) * MAX_BLOCKS, 2, CONFIG.num_key_value_heads, BLOCK_SIZE, 128)
    return DeviceState(
        block_tables=tables.view(MAX_SEQS + 1, MAX_BLOCKS),
        last_tokens=torch.zeros(MAX_SEQS + 1, dtype=torch.int32, device=device),
        token_counts=torch.zeros(1, 1, dtype=torch.int32, device=device),
        kv_caches=tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(3)),
    )


def test_products_for_many_tokens_equal_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of large steps, RMSNorm shared between their products, in a small step."""
    monkeypatch.setattr(linear, "wide_linear_pays", lambda *_, **__: True)
    test_prefill_then_mixed_then_decode_equal_the_reference(20)


@pytest.mark.parametrize("num_seqs", [1, 5, 14, 20, 45, 90, 150])
def test_prefill_then_mixed_then_decode_equal_the_reference(num_seqs: int) -> None:
    meta = Qwen3ForCausalLM(CONFIG, choose_attention("torch", torch.device("cpu")), torch.empty(0))
    weights = {
        name: torch.randn(p.shape).mul(1.0 if p.dim() == 1 else p.shape[-1] ** -0.5).bfloat16()
        for name, p in meta.named_parameters()
    }
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    models = [_model(cpu, torch.float32, weights), _model(gpu, torch.bfloat16, weights)]
    states = [_state(cpu, torch.float32), _state(gpu, torch.bfloat16)]
    prefill = [3 + 11 * i % 230 for i in range(num_seqs)]
    mixed = [1 if i % 2 else 9 + i % 40 for i in range(num_seqs)]
    steps = [("mixed", prefill), ("mixed", mixed), ("decode", [1] * num_seqs)]
    seq_lens = [0] * num_seqs
    for kind, query_lens in steps:
        seq_lens = [a + b for a, b in zip(seq_lens, query_lens, strict=True)]
        with torch.inference_mode():
            reference, logits = (
                model.compute_logits(model(_step(query_lens, seq_lens, kind, device), state))
                for model, state, device in zip(models, states, (cpu, gpu), strict=True)
            )
        # Three layers of bf16 activations, each rounded several times.
        assert relative_error(logits.cpu(), reference) < 2e-2
    # A decode step writes what it wrote before: its graph has the same result whenever it runs.
    decode = _step(query_lens, seq_lens, "decode", gpu)
    with torch.inference_mode():
        graph, replayed = captured(lambda: models[1].compute_logits(models[1](decode, states[1])))
        for _ in range(20):
            replayed.fill_(torch.nan)
            graph.replay()
            assert torch.equal(replayed, logits)

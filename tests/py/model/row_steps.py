"""Mixed steps of a small Qwen3 with any tokens wanted, and what the model makes of all tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dlcore.attention import AttentionBackend, choose_attention
from dlcore.layers.rope import build_cos_sin
from dlcore.models.qwen3 import Qwen3Config, Qwen3ForCausalLM
from dlcore.ops.begin_step import begin_step
from dlcore.ops.residual_stream import ResidualStream
from dlcore.step_buffers import DeviceState, StepBuffers

BLOCK_SIZE, VOCAB_SIZE = 16, 256


@dataclass(frozen=True, slots=True)
class Share:
    """A sequence's share of a step: its last `num_rows` tokens are wanted."""

    num_context: int
    num_tokens: int
    num_rows: int = 1

    @property
    def seq_len(self) -> int:
        return self.num_context + self.num_tokens


SHARES = {
    "a prompt": [Share(0, 90)],
    "a prompt in parts": [Share(0, 40, 0), Share(64, 33, 0), Share(100, 7, 1)],
    "prompt logprobs": [Share(0, 50, 50), Share(16, 21, 20), Share(0, 1, 1)],
    "prompts beside decodes": [*[Share(20 + 9 * i, 1) for i in range(40)], Share(30, 70)],
    "everything": [
        *[Share(37 * i % 300, 1) for i in range(20)],
        *[Share(0, 5 + 11 * i, i % 3) for i in range(20)],
        *[Share(50 + i, 2 + 3 * i, i % 3) for i in range(10)],
    ],
}


def random_model(
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dim: int,
    fp8: bool = False,
    attention: AttentionBackend | None = None,
    seed: int = 0,
) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=512,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=head_dim,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        attention_bias=False,
    )
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    cos_sin = build_cos_sin(rope, config.head_dim, 1024, device)
    model = Qwen3ForCausalLM(config, attention or choose_attention("auto", device), cos_sin)
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        size = 1.0 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        parameter.data = torch.randn(parameter.shape, generator=rng).mul(size).to(device, dtype)
    if fp8:
        model.use_fp8_kv_cache()
    model.weights_loaded()
    return model


def make_step(
    model: Qwen3ForCausalLM,
    shares: list[Share],
    *,
    extra_tokens: int = 5,
    extra_seqs: int = 3,
    seed: int = 0,
) -> tuple[StepBuffers, DeviceState]:
    """A mixed step in a bucket larger by the extras. The caches hold random contexts, and NaN
    where the step is to write."""
    device = model.embed_tokens.device
    ints = {"dtype": torch.int32, "device": device}
    rng = torch.Generator().manual_seed(seed)
    num_seqs = max(len(shares), sum(share.num_rows for share in shares)) + extra_seqs
    max_blocks = -(-max(share.seq_len for share in shares) // BLOCK_SIZE)
    num_blocks = len(shares) * max_blocks
    tables = torch.full((num_seqs + 1, max_blocks), num_blocks)
    tables[: len(shares)] = torch.randperm(num_blocks, generator=rng).view(-1, max_blocks)
    positions, slots, token_seq, indices, starts, row_starts = [], [], [], [], [0], [0]
    for seq, share in enumerate(shares):
        for position in range(share.num_context, share.seq_len):
            block = int(tables[seq, position // BLOCK_SIZE])
            positions.append(position)
            slots.append(block * BLOCK_SIZE + position % BLOCK_SIZE)
        token_seq += [seq] * share.num_tokens
        starts.append(starts[-1] + share.num_tokens)
        indices += range(starts[-1] - share.num_rows, starts[-1])
        row_starts.append(len(indices))
    header = torch.zeros(16, **ints)

    def padded(values: list[int], size: int, filler: int) -> Tensor:
        return torch.tensor(values + [filler] * (size - len(values)), **ints)

    num_tokens = len(positions) + extra_tokens
    token_ids = torch.randint(VOCAB_SIZE, (num_tokens,), generator=rng)
    step = StepBuffers(
        kind="mixed",
        arena=header,
        header=header,
        token_ids=token_ids.to(**ints),
        positions=padded(positions, num_tokens, 0),
        slot_mapping=padded(slots, num_tokens, -1),
        token_seq=padded(token_seq, num_tokens, -1),
        query_start_loc=padded(starts, num_seqs + 1, starts[-1]),
        seq_lens=padded([share.seq_len for share in shares], num_seqs, 0),
        seq_slots=padded(list(range(len(shares))), num_seqs, -1),
        logits_indices=padded(indices, num_seqs, 0),
        row_start_loc=padded(row_starts, num_seqs + 1, len(indices)),
        row_fields=header,
    )
    state = DeviceState(
        block_tables=tables.to(**ints),
        last_tokens=torch.zeros(num_seqs + 1, **ints),
        token_counts=torch.zeros(1, 1, **ints),
        kv_caches=tuple(
            _random_cache(cache, slots, rng)
            for cache in model.allocate_kv_caches(num_blocks, BLOCK_SIZE)
        ),
    )
    return step, state


def _random_cache(cache: Tensor, slots: list[int], rng: torch.Generator) -> Tensor:
    values = torch.randn(cache.shape, generator=rng)
    where = torch.tensor(slots)
    values[where // BLOCK_SIZE, :, :, where % BLOCK_SIZE] = torch.nan
    return values.to(cache.device).to(cache.dtype)


def num_rows(step: StepBuffers) -> int:
    return int(step.row_start_loc[-1])


def rows_of_all_tokens(model: Qwen3ForCausalLM, step: StepBuffers, state: DeviceState) -> Tensor:
    """What the model returns, each layer computed for all tokens: [S, hidden]."""
    stream = ResidualStream(functional.embedding(begin_step(step, state), model.embed_tokens))
    for layer, cache in zip(model.layers, state.kv_caches, strict=True):
        stream = layer(stream, step, state, model.cos_sin, cache)
    return model.norm(stream.x)[step.logits_indices.long()]

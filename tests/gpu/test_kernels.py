from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.attention_kernels import NewTokens
from dlcore.ops.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from dlcore.ops.residual_stream import PendingNorm
from tests.gpu.paged_case import needs_kernels, random_rows, relative_error

pytestmark = needs_kernels

EPS = 1e-6
ROUNDING = 3e-3  # of one bf16 result


def _random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def _norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    weight = None if weight is None else weight.float()
    return torch.nn.functional.rms_norm(x.float(), (x.shape[-1],), weight, EPS)


@pytest.mark.parametrize(("rows", "dim"), [(1, 1024), (5, 4096), (300, 2048), (3, 16384), (2, 72)])
def test_rms_norm(rows: int, dim: int) -> None:
    x, weight = random_rows(rows, dim), _random(dim)
    assert relative_error(kernels.rms_norm(x, weight, EPS), _norm(x, weight)) < ROUNDING
    assert relative_error(kernels.rms_norm(x, None, EPS), _norm(x)) < ROUNDING


def test_silu_and_mul() -> None:
    x = _random(37, 2 * 3072)
    gate, up = x.float().chunk(2, dim=-1)
    reference = torch.nn.functional.silu(gate) * up
    assert relative_error(kernels.silu_and_mul(x), reference) < ROUNDING


@pytest.mark.parametrize(
    ("num_tokens", "dim", "inner"), [(1, 64, 8), (300, 4096, 12288), (33, 1032, 1000)]
)
def test_silu_and_mul_of_a_product_whose_norm_is_pending(
    num_tokens: int, dim: int, inner: int
) -> None:
    x, weight = random_rows(num_tokens, dim), _random(2 * inner, dim, scale=0.05)
    gate, up = (_norm(x) @ weight.float().T).chunk(2, dim=-1)
    out = kernels.silu_and_mul(x @ weight.T, PendingNorm(x, EPS))
    assert relative_error(out, torch.nn.functional.silu(gate) * up) < 2 * ROUNDING


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 8, 9, 16])
@pytest.mark.parametrize(("n", "k"), [(1024, 3072), (4096, 1024), (1000, 128), (24, 4096)])
@pytest.mark.parametrize("row_tiles", [0, 1, 2, 4])
def test_skinny_linear(num_tokens: int, n: int, k: int, row_tiles: int) -> None:
    x, weight = random_rows(num_tokens, k), _random(n, k, scale=0.05)
    bias, residual = _random(n), _random(num_tokens, n)
    plain = x.float() @ weight.float().T
    normed = _norm(x) @ weight.float().T

    def run(**options: Tensor | float | torch.dtype) -> Tensor:
        return kernels.skinny_linear(x, weight, row_tiles=row_tiles, **options)

    assert relative_error(run(), plain) < ROUNDING
    assert relative_error(run(out_dtype=torch.float32), plain) < 1e-5
    assert relative_error(run(bias=bias, residual=residual), plain + bias + residual) < ROUNDING
    assert relative_error(run(norm_eps=EPS), normed) < ROUNDING


@pytest.mark.parametrize("num_tokens", [1, 3, 8, 13])
@pytest.mark.parametrize(("inner", "k"), [(3072, 1024), (12288, 4096), (24, 64)])
@pytest.mark.parametrize("row_tiles", [0, 4])
def test_skinny_swiglu(num_tokens: int, inner: int, k: int, row_tiles: int) -> None:
    x, weight = random_rows(num_tokens, k), _random(2 * inner, k, scale=0.05)
    gate, up = (_norm(x) @ weight.float().T).chunk(2, dim=-1)
    out = kernels.skinny_linear(x, weight, norm_eps=EPS, swiglu=True, row_tiles=row_tiles)
    assert relative_error(out, torch.nn.functional.silu(gate) * up) < 3 * ROUNDING


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("num_tokens", [37, 1001])
@pytest.mark.parametrize(("num_q", "stream_dim"), [(6, None), (6, 1032), (32, 4096)])
def test_qk_norm_rope_kv_write(
    head_dim: int, with_norm: bool, fp8: bool, num_tokens: int, num_q: int, stream_dim: int | None
) -> None:
    num_kv, block_size = 2, 16
    num_blocks = num_tokens // block_size + 7
    qkv = _random(num_tokens, (num_q + 2 * num_kv) * head_dim, scale=2)
    scaled, pending = qkv.float(), None
    if stream_dim is not None:  # of a stream whose rows are as much larger or smaller
        pending = PendingNorm(random_rows(num_tokens, stream_dim), EPS)
        rms = (pending.stream.float().square().mean(dim=1, keepdim=True) + EPS).sqrt()
        qkv = (qkv * rms).bfloat16()
        scaled = qkv / rms
    q_weight, k_weight = (_random(head_dim), _random(head_dim)) if with_norm else (None, None)
    cos_sin = torch.randn(500, head_dim, device="cuda")
    positions = torch.randint(500, (num_tokens,), device="cuda", dtype=torch.int32)
    slots = torch.randperm(num_blocks * block_size, device="cuda")[:num_tokens].int()
    slots[5] = slots[20] = -1
    scales = torch.rand(2, num_kv, device="cuda") + 0.1 if fp8 else None
    dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
    cache = torch.full((num_blocks, 2, num_kv, block_size, head_dim), 7.0, device="cuda").to(dtype)
    before = cache.float()

    tokens = NewTokens(
        q_weight=q_weight,
        k_weight=k_weight,
        eps=EPS,
        cos_sin=cos_sin,
        positions=positions,
        slot_mapping=slots,
    )
    q_out = qk_norm_rope_kv_write(qkv, tokens, cache, scales, pending)

    heads = scaled.view(num_tokens, -1, head_dim)
    q, k, v = heads.split([num_q, num_kv, num_kv], dim=1)
    if q_weight is not None and k_weight is not None:
        q, k = _norm(q, q_weight), _norm(k, k_weight)
    cos, sin = cos_sin[positions.long()][:, None].chunk(2, dim=-1)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    assert relative_error(q_out, q) < ROUNDING
    expected = before.clone()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            for which, rows in ((0, k), (1, v)):
                row = rows[token] if scales is None else rows[token] / scales[which][:, None]
                expected[slot // block_size, which, :, slot % block_size] = row.clamp(-448, 448)
    written = cache.float()
    untouched = expected == before
    assert torch.equal(written[untouched], before[untouched])
    assert relative_error(written, expected) < (4e-2 if fp8 else ROUNDING)


def test_begin_step_applies_updates_and_resolves_pending_tokens() -> None:
    num_updates, num_tokens, num_seqs = 3000, 700, 9
    tables = torch.zeros(64, 128, dtype=torch.int32, device="cuda")
    indices = torch.randperm(tables.numel())[:num_updates].int()
    blocks = torch.randint(1, 9999, (num_updates,), dtype=torch.int32)
    arena = torch.zeros(10000, dtype=torch.int32)
    arena[3], arena[9] = num_updates, 2000
    arena[2000 : 2000 + 2 * num_updates] = torch.stack((indices, blocks), dim=1).flatten()
    arena = arena.cuda()
    token_seq = torch.randint(-1, num_seqs, (num_tokens,), dtype=torch.int32)
    token_ids = torch.randint(-1, 50, (num_tokens,), dtype=torch.int32)
    seq_slots = torch.randperm(64)[:num_seqs].int()
    seq_slots[-1] = -1
    last_tokens = torch.randint(100, 200, (64,), dtype=torch.int32)
    out = kernels.begin_step(
        arena,
        arena[:16],
        token_ids.cuda(),
        token_seq.cuda(),
        seq_slots.cuda(),
        last_tokens.cuda(),
        tables,
    )
    expected = torch.zeros_like(tables, device="cpu").view(-1)
    expected[indices.long()] = blocks
    assert torch.equal(tables.cpu().view(-1), expected)
    for i, token in enumerate(out.tolist()):
        seq = int(token_seq[i])
        slot = int(seq_slots[seq]) if seq >= 0 else -1
        want = int(token_ids[i])
        if want < 0:
            want = int(last_tokens[slot]) if slot >= 0 else 0
        assert token == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "vocab"), [(1, 151936), (3, 1000), (300, 4096)])
def test_argmax_takes_the_lowest_index_and_skips_padding(
    dtype: torch.dtype, num_rows: int, vocab: int
) -> None:
    workspace = kernels.argmax_workspace(num_rows, torch.device("cuda"))
    last_tokens = torch.full((num_rows + 4,), -7, dtype=torch.int32, device="cuda")
    slots = torch.randperm(num_rows + 4)[:num_rows].int().cuda()
    if num_rows > 1:
        slots[1] = -1
    for _ in range(2):  # the workspace is clean after a launch
        logits = torch.randn(num_rows, vocab, device="cuda").to(dtype)  # bf16: many ties
        sampled = torch.full((num_rows,), -9, dtype=torch.int32, device="cuda")
        kernels.argmax(logits, slots, sampled, last_tokens, workspace)
        best = (logits == logits.amax(dim=-1, keepdim=True)).int().argmax(dim=-1).int()
        expected = best.where(slots >= 0, -1)
        assert torch.equal(sampled, expected)
        live = slots >= 0
        assert torch.equal(last_tokens[slots[live].long()], expected[live])

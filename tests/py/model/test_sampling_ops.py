"""The sampler's ops against plain numpy, on random inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcore.ops.counter_rng import gumbel_noise, random_bits
from dlcore.ops.logprobs import write_logprobs
from dlcore.ops.sample import cut_distribution, greedy_sample, random_sample

MASK = 0xFFFFFFFF


def mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & MASK
    x ^= x >> 15
    x = x * 0x846CA68B & MASK
    return x ^ x >> 16


def bits(seed: int, position: int, token: int) -> int:
    """The generator's definition, in Python integers."""
    k0 = mix(mix(seed & MASK) ^ (seed >> 32 & MASK))
    k1 = mix(k0 + 0x9E3779B9 * (position + 1) & MASK)
    k2 = mix(k1 ^ 0x9E3779B9)
    return mix(mix((token * 0x9E3779B9 & MASK) ^ k1) + k2 & MASK)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**20), st.integers(0, 300_000))
@settings(max_examples=100, deadline=None)
def test_the_bits_are_a_function_of_seed_position_and_token(
    seed: int, position: int, token: int
) -> None:
    got = random_bits(torch.tensor([seed]), torch.tensor([position], dtype=torch.int32), token + 1)
    assert got[0, token].item() == bits(seed, position, token)


def test_the_noise_is_gumbel() -> None:
    seeds, positions = torch.arange(200), torch.arange(200, dtype=torch.int32)
    noise = gumbel_noise(seeds, positions, 1000).double()
    assert torch.isfinite(noise).all()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.01)
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, rel=0.02)


def kept_tokens(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    order = [int(i) for i in np.argsort(-logits, kind="stable") if probs[i] >= min_p * probs.max()]
    order = order[:top_k] if top_k else order
    mass, kept = 0.0, set()
    total = probs[order].sum()
    for token in order:
        if kept and mass >= top_p:
            break
        kept.add(token)
        mass += probs[token] / total
    return kept


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 60),
    st.integers(0, 70),
    st.floats(0.01, 1.0),
    st.floats(0.0, 0.9),
)
@settings(max_examples=200, deadline=None)
def test_the_cut_keeps_exactly_the_tokens_of_the_definition(
    seed: int, vocab: int, top_k: int, top_p: float, min_p: float
) -> None:
    # Distinct logits, far enough apart that float32 rounding moves no boundary.
    rng = np.random.default_rng(seed)
    logits = rng.permutation(np.linspace(-4, 4, vocab)).astype(np.float32)
    cut = cut_distribution(
        torch.from_numpy(logits)[None],
        torch.tensor([top_k], dtype=torch.int32),
        torch.tensor([top_p]),
        torch.tensor([min_p]),
    )[0]
    kept = {int(i) for i in torch.isfinite(cut).nonzero()}
    want = kept_tokens(logits.astype(np.float64), top_k, top_p, min_p)
    if kept != want:  # allowed only where a cumulative sum meets top_p within rounding
        assert len(kept ^ want) == 1
        larger = max(kept, want, key=len)
        probs = np.exp(logits.astype(np.float64))
        base = kept_tokens(logits.astype(np.float64), top_k, 1.0, min_p)
        smaller_mass = probs[list(kept & want)].sum() / probs[list(base)].sum()
        assert smaller_mass == pytest.approx(top_p, abs=1e-5), larger
    assert torch.equal(cut[list(kept)], torch.from_numpy(logits)[list(kept)])


def parameters(rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0):
    return {
        "temperature": torch.full((rows,), temperature),
        "top_k": torch.full((rows,), top_k, dtype=torch.int32),
        "top_p": torch.full((rows,), top_p),
        "min_p": torch.zeros(rows),
    }


def test_draws_follow_the_distribution() -> None:
    """A chi-square test over 20,000 positions of one seed."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])
    rows, temperature = 20_000, 0.7
    tokens = random_sample(
        logits.expand(rows, -1),
        **parameters(rows, temperature),
        seeds=torch.full((rows,), 1234),
        positions=torch.arange(rows, dtype=torch.int32),
    )
    expected = (logits / temperature).softmax(-1) * rows
    counts = torch.bincount(tokens, minlength=5)
    assert counts[4] == 0
    chi_square = ((counts - expected) ** 2 / expected)[:4].sum().item()
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


def test_temperature_zero_is_the_argmax_beside_rows_that_draw() -> None:
    logits = torch.randn(6, 100, generator=torch.Generator().manual_seed(0))
    params = parameters(6)
    params["temperature"][::2] = 0.0
    tokens = random_sample(
        logits, **params, seeds=torch.arange(6), positions=torch.zeros(6, dtype=torch.int32)
    )
    assert torch.equal(tokens[::2], greedy_sample(logits)[::2])


def test_a_row_draws_the_same_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(16, 500, generator=generator)
    params = parameters(16, temperature=0.8, top_k=40, top_p=0.9)
    seeds, positions = torch.arange(16) * 7919, torch.arange(16, dtype=torch.int32)
    together = random_sample(logits, **params, seeds=seeds, positions=positions)
    for i in range(16):
        row = slice(i, i + 1)
        alone = random_sample(
            logits[row],
            **{name: value[row] for name, value in params.items()},
            seeds=seeds[row],
            positions=positions[row],
        )
        assert alone.item() == together[i].item()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_logprobs_and_ranks_are_those_of_a_sorted_row(seed: int, vocab: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, vocab)).astype(np.float32)
    tokens = rng.integers(0, vocab, 3)
    logprobs, ranks = torch.empty(3), torch.empty(3, dtype=torch.int32)
    top_ids, top_logprobs = torch.empty(3, 20, dtype=torch.int32), torch.empty(3, 20)
    write_logprobs(
        torch.from_numpy(logits), torch.from_numpy(tokens), logprobs, ranks, top_ids, top_logprobs
    )
    reference = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    width = min(20, vocab)
    for i, token in enumerate(tokens):
        order = np.argsort(-reference[i], kind="stable")
        assert logprobs[i].item() == pytest.approx(reference[i, token], abs=1e-5)
        assert ranks[i].item() == int(np.flatnonzero(order == token)[0]) + 1
        assert top_ids[i, :width].tolist() == order[:width].tolist()
        assert np.allclose(top_logprobs[i, :width], reference[i, order[:width]], atol=1e-5)
        assert (top_ids[i, width:] == -1).all()

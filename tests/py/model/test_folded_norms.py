"""The weights of a layer's norms are in the products after them."""

from __future__ import annotations

import torch
from model.row_steps import SHARES, make_step, num_rows, random_model
from torch import Tensor
from torch.nn import functional

from dlcore.layers.linear import Linear
from dlcore.layers.norm import RMSNorm
from dlcore.models.qwen3 import Qwen3ForCausalLM
from dlcore.ops.linear import norm_linear, norm_swiglu
from dlcore.ops.residual_stream import PendingNorm, ResidualStream

EPS = 1e-6


def _norm_and_product(seed: int) -> tuple[RMSNorm, Linear]:
    """With norm weights of all sizes, some of them zero or negative."""
    rng = torch.Generator().manual_seed(seed)
    norm, linear = RMSNorm(96, EPS), Linear(96, 80)
    sizes = torch.randn(96, generator=rng).mul(3).exp()
    norm.weight.copy_(sizes * torch.randint(-1, 2, (96,), generator=rng))
    linear.weight.copy_(torch.randn(80, 96, generator=rng))
    return norm, linear


def _rows_of_all_sizes(seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(40, 96, generator=rng) * torch.logspace(-4, 4, 40)[:, None]


def test_folding_changes_a_product_by_no_more_than_rounding() -> None:
    for seed in range(5):
        norm, linear = _norm_and_product(seed)
        x = _rows_of_all_sizes(seed)
        expected = functional.linear(functional.rms_norm(x, (96,), norm.weight, EPS), linear.weight)
        gate, up = expected.chunk(2, dim=-1)
        norm.fold_into(linear)
        out = norm_linear(ResidualStream(x), EPS, linear.weight)[0]
        tolerance = 1e-5 * expected.norm(dim=-1, keepdim=True)
        assert ((out - expected).abs() <= tolerance).all()
        inner = norm_swiglu(ResidualStream(x), EPS, linear.weight)
        torch.testing.assert_close(inner, functional.silu(gate) * up, rtol=1e-3, atol=1e-3)


def test_a_pending_norm_is_the_norm_before_the_product() -> None:
    rng = torch.Generator().manual_seed(3)
    x, weight = _rows_of_all_sizes(3), torch.randn(80, 96, generator=rng)
    expected = functional.rms_norm(x, (96,), None, EPS) @ weight.T
    product = PendingNorm(x, EPS).apply(x @ weight.T)
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-4)


def test_folding_twice_is_folding_once() -> None:
    norm, linear = _norm_and_product(0)
    norm.fold_into(linear)
    folded = linear.weight.clone()
    norm.fold_into(linear)
    assert torch.equal(linear.weight, folded)


def _logits(model: Qwen3ForCausalLM) -> Tensor:
    step, state = make_step(model, SHARES["everything"])
    return model.compute_logits(model(step, state))[: num_rows(step)]


def test_a_model_whose_weights_are_loaded_again_is_the_same() -> None:
    """The weight map still tells what is computed: what was loaded, or what was folded."""
    model = random_model(torch.device("cpu"), torch.float32, head_dim=64)
    expected, folded = _logits(model), {n: w.clone() for n, w in model.weight_map().items()}
    model.weights_loaded()
    assert torch.equal(_logits(model), expected)
    for name, weight in model.weight_map().items():
        weight.copy_(folded[name])
    model.weights_loaded()
    assert torch.equal(_logits(model), expected)

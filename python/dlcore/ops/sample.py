"""Choosing one token per row: exact top-k, top-p and min-p, then one draw."""

from __future__ import annotations

import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.counter_rng import gumbel_noise


def greedy_sample(logits: Tensor) -> Tensor:
    """logits: [S, V] -> int32 [S]; the lowest id wins a tie."""
    return logits.argmax(dim=-1).int()


def random_sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    space: Tensor | None = None,
) -> Tensor:
    """One draw per row from softmax(logits / temperature) cut by min-p, then top-k, then top-p.

    logits: [S, V], any float dtype; temperature, top_p, min_p: [S] float32; top_k, positions: [S]
    int32; seeds: [S] int64; space: DeviceState.argmax_space. Rows of temperature 0 take the
    argmax. Returns int32 [S].
    """
    if space is not None and kernels.argmax_supports(logits):
        return kernels.random_sample(
            logits, temperature, top_k, top_p, min_p, seeds, positions, space
        )
    logits = logits.float()
    greedy = temperature <= 0
    scaled = logits / temperature.where(~greedy, 1.0)[:, None]
    # On the CPU a look at the parameters is free and saves the sort; in a graph it is impossible.
    may_cut = logits.is_cuda or _any_cut(top_k, top_p, min_p)
    kept = cut_distribution(scaled, top_k, top_p, min_p) if may_cut else scaled
    noise = gumbel_noise(seeds, positions, logits.shape[-1])
    drawn = (kept + noise).argmax(dim=-1)
    return drawn.where(~greedy, logits.argmax(dim=-1)).int()


def cut_distribution(logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Logits with the tokens that may not be drawn at -inf (order of vLLM: min-p, top-k, top-p).

    Exact: the top_k most likely tokens (0 = all; every token that ties with the k-th), then the
    smallest set of them whose probability reaches top_p, never empty.
    """
    probs = logits.softmax(dim=-1)
    floor = min_p[:, None] * probs.amax(dim=-1, keepdim=True)
    logits = logits.masked_fill(probs < floor, -torch.inf)
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    last = torch.where(top_k > 0, top_k, logits.shape[-1]).clamp(max=logits.shape[-1]).long() - 1
    ordered = ordered.masked_fill(ordered < ordered.gather(-1, last[:, None]), -torch.inf)
    ordered_probs = ordered.softmax(dim=-1)
    before = ordered_probs.cumsum(dim=-1) - ordered_probs
    outside = (before >= top_p[:, None]) & (top_p < 1)[:, None]
    outside[:, 0] = False
    ordered = ordered.masked_fill(outside, -torch.inf)
    return torch.empty_like(ordered).scatter_(-1, order, ordered)


def _any_cut(top_k: Tensor, top_p: Tensor, min_p: Tensor) -> bool:
    return bool(((top_k > 0) | (top_p < 1) | (min_p > 0)).any())

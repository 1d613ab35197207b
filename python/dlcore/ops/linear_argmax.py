"""The LM head of greedy rows: the largest logit of each, without the logits."""

from __future__ import annotations

from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.wide_linear import MIN_K, TILE

MAX_EMPTY = 64  # rows of the last tile


def linear_argmax_pays(rows: Tensor, weight: Tensor) -> bool:
    """Whether `linear_argmax` takes these, and is faster than a product and an argmax."""
    vocab, hidden = weight.shape
    fits = vocab % 8 == 0 and hidden % 8 == 0 and hidden >= MIN_K
    num_rows = rows.shape[0]
    fills = -num_rows % TILE <= MAX_EMPTY
    return fits and fills and kernels.usable(rows, weight)


def linear_argmax(
    rows: Tensor,
    weight: Tensor,
    row_slots: Tensor,
    sampled: Tensor,
    last_tokens: Tensor,
    workspace: Tensor,
) -> None:
    """`kernels.argmax` of the bf16 logits rows weight^T. rows: [S, K], weight: [vocab, K]."""
    pointers = (rows, weight, row_slots, sampled, last_tokens, workspace)
    kernels.call("dlk_linear_argmax", *map(kernels.pointer, pointers), rows.shape[0], *weight.shape)

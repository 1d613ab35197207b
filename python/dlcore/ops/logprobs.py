"""Log-probabilities of the raw distribution: before penalties, bias, masks and temperature."""

from __future__ import annotations

import torch
from torch import Tensor


def write_logprobs(
    raw_logits: Tensor,
    tokens: Tensor,
    logprobs: Tensor,
    ranks: Tensor,
    top_ids: Tensor,
    top_logprobs: Tensor,
) -> None:
    """Writes each row's logprob and rank (1 = most likely) of its token, and the top k.

    raw_logits: [S, V] float32; tokens: [S] int32 (-1 on padding: its results are meaningless).
    Outputs: logprobs [S] float32, ranks [S] int32, top_ids [S, k] int32, top_logprobs [S, k].
    Where k exceeds V, the surplus columns hold -1 and -inf.
    """
    all_logprobs = raw_logits.log_softmax(dim=-1)
    chosen = all_logprobs.gather(-1, tokens.clamp(min=0).long()[:, None])
    logprobs.copy_(chosen.squeeze(-1))
    ranks.copy_((all_logprobs > chosen).sum(dim=-1) + 1)
    width = min(top_ids.shape[-1], raw_logits.shape[-1])
    values, ids = all_logprobs.topk(width, dim=-1)
    top_ids[:, :width].copy_(ids)
    top_logprobs[:, :width].copy_(values)
    top_ids[:, width:].fill_(-1)
    top_logprobs[:, width:].fill_(-torch.inf)

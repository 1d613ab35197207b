from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.linear_argmax import linear_argmax
from dlcore.ops.wide_linear import wide_linear
from tests.gpu.paged_case import needs_kernels
from tools.kernel_timing import captured

pytestmark = needs_kernels


class Head:
    """Runs `linear_argmax` again and again on one workspace."""

    def __init__(self, num_rows: int) -> None:
        self.slots = torch.randperm(num_rows + 4)[:num_rows].int().cuda()
        self.workspace = kernels.argmax_workspace(num_rows, torch.device("cuda"))
        self.last_tokens = torch.full((num_rows + 4,), -7, dtype=torch.int32, device="cuda")

    def __call__(self, rows: Tensor, weight: Tensor) -> Tensor:
        sampled = torch.full_like(self.slots, -9)
        linear_argmax(rows, weight, self.slots, sampled, self.last_tokens, self.workspace)
        return sampled


def _best(logits: Tensor) -> Tensor:
    """The lowest index of the largest; 0 where all are NaN."""
    logits = logits.float().nan_to_num(nan=-torch.inf)
    return (logits == logits.amax(dim=-1, keepdim=True)).int().argmax(dim=-1).int()


@pytest.mark.parametrize("num_rows", [1, 128, 129, 300, 1100])
@pytest.mark.parametrize(("vocab", "hidden"), [(151936, 1024), (1000, 1096), (264, 64)])
def test_it_is_the_argmax_of_the_products_logits(num_rows: int, vocab: int, hidden: int) -> None:
    head = Head(num_rows)
    weight = torch.randn(vocab, hidden, device="cuda").bfloat16()
    weight[vocab // 2 :] = weight[: vocab - vocab // 2].clone()  # each logit twice
    for _ in range(3):  # the workspace is clean after a launch
        rows = torch.randn(num_rows, hidden, device="cuda").bfloat16()
        rows[num_rows // 2] = torch.nan
        assert torch.equal(head(rows, weight), _best(wide_linear(rows, weight)))


def test_a_row_without_a_slot_gets_no_token_and_writes_none() -> None:
    head = Head(200)
    head.slots[3] = head.slots[150] = -1
    rows = torch.randn(200, 512, device="cuda").bfloat16()
    weight = torch.randn(4096, 512, device="cuda").bfloat16()
    expected = _best(wide_linear(rows, weight)).where(head.slots >= 0, -1)
    assert torch.equal(head(rows, weight), expected)
    live = head.slots >= 0
    assert torch.equal(head.last_tokens[head.slots[live].long()], expected[live])
    assert (head.last_tokens == -7).sum() == 204 - 198


def test_it_sees_what_the_kernel_before_it_wrote() -> None:
    """As a graph of launches that overlap, replay after replay."""
    head = Head(256)
    weight = torch.randn(20_000, 1024, device="cuda").bfloat16()
    rows = torch.randn(256, 1024, device="cuda").bfloat16()
    norm = torch.ones(1024, device="cuda").bfloat16()
    graph, sampled = captured(lambda: head(kernels.rms_norm(rows, norm, 1e-6), weight))
    for _ in range(3):
        rows.copy_(torch.randn(256, 1024, device="cuda"))
        graph.replay()
        normed = kernels.rms_norm(rows, norm, 1e-6)
        assert torch.equal(sampled, _best(wide_linear(normed, weight)))

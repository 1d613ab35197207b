"""A mixed step's last layer, which goes on with the wanted rows only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model.row_steps import SHARES, make_step, num_rows, random_model, rows_of_all_tokens

CPU = torch.device("cpu")


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("shares", SHARES)
def test_a_row_does_not_depend_on_whether_the_last_layer_runs_for_all(
    shares: str, fp8: bool, head_dim: int
) -> None:
    model = random_model(CPU, torch.float32, head_dim=head_dim, fp8=fp8)
    rows, caches = [], []
    for forward in (model, lambda *step: rows_of_all_tokens(model, *step)):
        step, state = make_step(model, SHARES[shares])
        with torch.inference_mode():
            rows.append(forward(step, state)[: num_rows(step)])
        caches.append([cache[:-1] for cache in state.kv_caches])  # not the scratch block
    torch.testing.assert_close(rows[0], rows[1], atol=2e-5, rtol=1e-4)
    for pruned, whole in zip(*caches, strict=True):
        assert torch.equal(pruned.view(torch.uint8), whole.view(torch.uint8))


def test_a_row_does_not_depend_on_which_others_are_wanted() -> None:
    model = random_model(CPU, torch.float32, head_dim=64)
    shares = SHARES["everything"]
    rows = []
    for wanted in (shares, [replace(share, num_rows=share.num_tokens) for share in shares]):
        step, state = make_step(model, wanted)
        with torch.inference_mode():
            hidden = model(step, state)[: num_rows(step)]
        indices = step.logits_indices[: num_rows(step)].tolist()
        rows.append(dict(zip(indices, hidden, strict=True)))
    few, all_rows = rows
    assert len(all_rows) == sum(share.num_tokens for share in shares)
    for index, row in few.items():
        torch.testing.assert_close(row, all_rows[index], atol=2e-5, rtol=1e-4)

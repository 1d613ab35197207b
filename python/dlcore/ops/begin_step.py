"""The first thing a step does on the device: block tables brought up to date, tokens resolved."""

from __future__ import annotations

from torch import Tensor

from dlcore.ops import kernels, step_kernels
from dlcore.step_buffers import DeviceState, Header, StepBuffers


def begin_step(step: StepBuffers, state: DeviceState) -> Tensor:
    """Applies the step's block updates to `state.block_tables` and returns the token ids to embed.

    Returns [T] int64: `step.token_ids`, where a pending one (-1) became the token its sequence
    sampled last. Padding may be any valid id.
    """
    if kernels.runs_on(step.header.device):
        return kernels.begin_step(
            step.arena,
            step.header,
            step.token_ids,
            step.token_seq,
            step.seq_slots,
            state.last_tokens,
            state.block_tables,
        )
    if step.header.is_cuda:
        step_kernels.apply_block_updates(step, state)
    else:
        _apply_block_updates(step, state)
    token_ids = step.token_ids.long()
    slots = step.seq_slots[step.token_seq.long()].long()
    pending = state.last_tokens[slots].long()
    return token_ids.where(token_ids >= 0, pending).clamp_(min=0)


def _apply_block_updates(step: StepBuffers, state: DeviceState) -> None:
    count = int(step.header[Header.NUM_BLOCK_UPDATES])
    if count == 0:
        return
    start = int(step.header[Header.BLOCK_UPDATES_OFFSET])
    updates = step.arena[start : start + 2 * count].view(count, 2)
    state.block_tables.view(-1)[updates[:, 0].long()] = updates[:, 1]

"""The arenas as tensors, and the state on the device that every step shares.

`_core.StepLayout` (cpp/include/dlcore/step_layout.h) defines where each field lies; this module
only makes views of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dlcore import _core

FIELD_DTYPES = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32}

# In `token_counts`: set once a token was seen in the prompt; the bits below count outputs.
PROMPT_SEEN_BIT = 1 << 30
# In a history entry's token: the sequence generated it (step_layout.h's kHistoryOutputFlag).
HISTORY_OUTPUT_FLAG = 1 << 30


# Takes the step's header and how many of its layers are done (see ops.report_layer).
LayerReport = Callable[[Tensor, int], None]


class Header(IntEnum):
    """Indices into the header (step_layout.h's StepHeader); offsets count int32s."""

    NUM_TOKENS = 0
    NUM_SEQS = 1
    NUM_ROWS = 2
    NUM_BLOCK_UPDATES = 3
    NUM_HISTORY = 4
    NUM_BIAS = 5
    NUM_MASKS = 6
    MAX_SEQ_LEN = 7
    MAX_QUERY_LEN = 8
    BLOCK_UPDATES_OFFSET = 9
    HISTORY_OFFSET = 10
    BIAS_OFFSET = 11
    MASKS_OFFSET = 12
    STEP_SERIAL = 13


class Queries(Protocol):
    """The query tokens of a step, or some of them, as attention reads them. S sequences."""

    @property
    def kind(self) -> str:
        """See StepBuffers; "rows": see WantedRows."""
        ...

    @property
    def query_start_loc(self) -> Tensor: ...  # int32 [S + 1]

    @property
    def seq_lens(self) -> Tensor: ...  # int32 [S], 0 = padding

    @property
    def seq_slots(self) -> Tensor: ...  # int32 [S], -1 = padding

    @property
    def num_seqs(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRows:
    """The tokens of a mixed step whose hidden state is wanted: of each sequence its last ones, or
    none. Unlike in other queries, tokens before a sequence's last may be of this step too."""

    kind = "rows"
    indices: Tensor  # int32 [S]: row -> token
    query_start_loc: Tensor  # int32 [S + 1]: of rows
    seq_lens: Tensor
    seq_slots: Tensor

    @property
    def num_seqs(self) -> int:
        return self.seq_lens.shape[0]

    def of(self, tokens: Tensor) -> Tensor:
        """tokens: [T, ...] -> [S, ...]."""
        return tokens.index_select(0, self.indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBuffers:
    """What a model reads of one step. T = key.num_tokens, S = key.num_seqs."""

    kind: str  # "decode": every sequence has one query token | "mixed"
    arena: Tensor  # the whole input arena as int32; the tail's sections live here
    header: Tensor  # int32 [16]
    token_ids: Tensor  # int32 [T], -1 = the sequence's last sampled token
    positions: Tensor  # int32 [T]
    slot_mapping: Tensor  # int32 [T], -1 = padding
    token_seq: Tensor  # int32 [T], -1 = padding
    query_start_loc: Tensor  # int32 [S + 1]
    seq_lens: Tensor  # int32 [S], 0 = padding
    seq_slots: Tensor  # int32 [S], -1 = padding
    logits_indices: Tensor  # int32 [S]
    row_start_loc: Tensor  # int32 [S + 1]
    row_fields: Tensor  # int32: query_start_loc and all that follows it, up to the tail
    report_layers: LayerReport | None = None

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @property
    def num_seqs(self) -> int:
        return self.seq_lens.shape[0]

    def wanted_rows(self) -> WantedRows | None:
        """None where all tokens are wanted."""
        if self.kind == "decode":
            return None
        return WantedRows(
            indices=self.logits_indices,
            query_start_loc=self.row_start_loc,
            seq_lens=self.seq_lens,
            seq_slots=self.seq_slots,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerBuffers:
    """What a sampler reads and writes of one step; one row per wanted token. Fields of a larger
    variant than the step's are None."""

    variant: str  # "greedy" | "random" | "full"
    arena: Tensor
    header: Tensor
    row_slots: Tensor  # int32 [S], -1 = padding or a prompt-logprob row
    target_tokens: Tensor  # int32 [S], prompt-logprob rows: the token to score; -1 = sample
    sampled_tokens: Tensor  # output, int32 [S]
    temperature: Tensor | None = None
    top_p: Tensor | None = None
    min_p: Tensor | None = None
    top_k: Tensor | None = None
    seeds: Tensor | None = None
    sample_positions: Tensor | None = None
    presence_penalty: Tensor | None = None
    frequency_penalty: Tensor | None = None
    repetition_penalty: Tensor | None = None
    mask_rows: Tensor | None = None
    counts_reset: Tensor | None = None
    sampled_logprobs: Tensor | None = None  # outputs
    sampled_ranks: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """Tensors allocated once and shared by every step. The last row of each is scratch: an index
    of -1 (padding) reads and writes it, and nothing else does."""

    block_tables: Tensor  # int32 [max_num_seqs + 1, max_blocks_per_seq]
    last_tokens: Tensor  # int32 [max_num_seqs + 1]
    token_counts: Tensor  # int32 [max_num_seqs + 1, vocab_size], see PROMPT_SEEN_BIT
    kv_caches: tuple[Tensor, ...]  # per layer [num_kv_blocks + 1, 2, num_kv_heads, block_size, D]
    argmax_space: Tensor | None = None  # uint8, ops.kernels.argmax_workspace; GPU only


@dataclass(frozen=True, slots=True, kw_only=True)
class Arenas:
    """The input and output arena, and the options their layouts are cut from."""

    options: _core.EngineOptions
    input: Tensor  # uint8
    output: Tensor  # uint8

    @classmethod
    def allocate(cls, options: _core.EngineOptions, device: torch.device) -> Arenas:
        def zeros(num_bytes: int) -> Tensor:
            return lazy_zeros((-(-num_bytes // 256) * 256,), torch.uint8, device)

        return cls(
            options=options,
            input=zeros(_core.StepLayout.max_input_bytes(options)),
            output=zeros(_core.StepLayout.max_output_bytes(options)),
        )

    def step_buffers(self, key: _core.StepKey, report: LayerReport | None = None) -> StepBuffers:
        """report: told of the layers of a mixed step; a decode step is over too soon."""
        layout = _core.StepLayout(self.options, key)
        fields = _views(self.input, layout.inputs())
        row_start = _offset(layout.inputs(), "query_start_loc")
        return StepBuffers(
            kind=key.kind,
            arena=self.input.view(torch.int32),
            row_fields=self.input[row_start : layout.tail_offset].view(torch.int32),
            report_layers=report if key.kind == "mixed" else None,
            **{name: fields[name] for name in _STEP_FIELDS},
        )

    def sampler_buffers(
        self, key: _core.StepKey, row_fields: Tensor | None = None
    ) -> SamplerBuffers:
        """Views for the sampler: into the arena, or into `row_fields`, a copy of the step's
        `StepBuffers.row_fields`, whose layout depends on S and the variant alone."""
        layout = _core.StepLayout(self.options, key)
        source, shift = self.input, 0
        if row_fields is not None:
            source = row_fields.view(torch.uint8)
            shift = _offset(layout.inputs(), "query_start_loc")
        wanted = [f for f in layout.inputs() if f[0] in _SAMPLER_FIELDS]
        fields = _views(source, [(n, t, offset - shift, s) for n, t, offset, s in wanted])
        return SamplerBuffers(
            variant=key.sampler,
            arena=self.input.view(torch.int32),
            header=self.input[: 4 * HEADER_SIZE].view(torch.int32),
            **fields,
            **_views(self.output, layout.outputs()),
        )


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.zeros, but on the CPU of pages the system commits at first use: most of a KV cache is
    not used at first, and start-up should not wait for it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    flat = torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8))
    return flat.view(dtype).view(shape)


HEADER_SIZE = 16
_STEP_FIELDS = (
    "header",
    "token_ids",
    "positions",
    "slot_mapping",
    "token_seq",
    "query_start_loc",
    "seq_lens",
    "seq_slots",
    "logits_indices",
    "row_start_loc",
)
_SAMPLER_FIELDS = frozenset(SamplerBuffers.__slots__) - {"variant", "arena", "header"}


def _views(arena: Tensor, fields: list[tuple[str, str, int, tuple[int, ...]]]) -> dict[str, Tensor]:
    views = {}
    for name, type_name, offset, shape in fields:
        dtype = FIELD_DTYPES[type_name]
        num_bytes = dtype.itemsize * int(torch.Size(shape).numel())
        views[name] = arena[offset : offset + num_bytes].view(dtype).view(shape)
    return views


def _offset(fields: list[tuple[str, str, int, tuple[int, ...]]], name: str) -> int:
    return next(offset for field, _, offset, _ in fields if field == name)

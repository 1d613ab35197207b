"""Random numbers that depend on (seed, position, token) alone.

A request's text then depends neither on its batch nor on preemption, nor on the device: the same
32-bit integer operations give the same bits in torch on any device and in a CUDA or Triton kernel.
All arithmetic is modulo 2**32, held in int64 tensors that are masked after each operation.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF
GOLDEN = 0x9E3779B9
MIX_A = 0x7FEB352D
MIX_B = 0x846CA68B


def mix32(x: Tensor) -> Tensor:
    """A bijection of uint32 with full avalanche (Wellons' "lowbias32"). int64 in [0, 2**32)."""
    x = x ^ (x >> 16)
    x = (x * MIX_A) & MASK32
    x = x ^ (x >> 15)
    x = (x * MIX_B) & MASK32
    return x ^ (x >> 16)


def row_keys(seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """seeds [S] int64, positions [S] int32 -> two uint32 keys per row, each int64 [S].

    k0 = mix(mix(low(seed)) ^ high(seed)); k1 = mix(k0 + GOLDEN * (position + 1))
    k2 = mix(k1 ^ GOLDEN); the keys are (k1, k2).
    """
    low = seeds & MASK32
    high = (seeds >> 32) & MASK32
    k0 = mix32(mix32(low) ^ high)
    k1 = mix32((k0 + GOLDEN * (positions.long() + 1)) & MASK32)
    return k1, mix32(k1 ^ GOLDEN)


def random_bits(seeds: Tensor, positions: Tensor, num_tokens: int) -> Tensor:
    """uint32 bits per (row, token), as int64 [S, num_tokens]:
    mix(mix((token * GOLDEN) ^ k1) + k2)."""
    k1, k2 = row_keys(seeds, positions)
    tokens = torch.arange(num_tokens, device=seeds.device, dtype=torch.int64)
    x = mix32(((tokens * GOLDEN) & MASK32) ^ k1[:, None])
    return mix32((x + k2[:, None]) & MASK32)


def gumbel_noise(seeds: Tensor, positions: Tensor, num_tokens: int) -> Tensor:
    """float32 [S, num_tokens]: -log(E), E = -log1p(-u), u = (bits + 0.5) / 2**32 < 1.

    Taking E from u near 0 keeps its smallest values, which decide the sample, finely spaced.
    """
    u = (random_bits(seeds, positions, num_tokens).float() + 0.5) * 2.0**-32
    exponential = -torch.log1p(-u.clamp(max=1.0 - 2.0**-24))
    return -exponential.log()

"""The tiles of `tile_linear` that test_tile_linear.py covers."""

from __future__ import annotations

from dlcore.ops.tile_linear import LinearTile

TILES = tuple(
    LinearTile(tokens=tokens, rows=rows, splits=splits, stages=stages)
    for tokens, rows, deep in (
        (32, 64, 12),
        (64, 64, 9),
        (128, 64, 6),
        (32, 192, 5),
        (64, 192, 7),
        (128, 192, 5),
    )
    for splits, stages in ((1, 2), (1, deep), (2, 4), (4, 3), (8, 2))
)

"""The tiles of `tile_linear` that test_tile_linear.py covers."""

from __future__ import annotations

from dlcore.ops.tile_linear import LinearTile

TILES = tuple(
    LinearTile(tokens=tokens, rows=rows, boxes=boxes, sharers=sharers, splits=splits, stages=stages)
    for tokens in (32, 64, 128, 256)
    for rows in (64, 128, 192)
    for boxes in ((1, 2) if tokens <= 64 and rows <= 128 else (1,))
    for sharers, splits, stages in (
        *((1, 1, 4), (1, 1, 2), (2, 1, 4), (4, 1, 3)),
        *((2, 2, 2), (4, 2, 2), (2, 4, 3), (1, 8, 2), (1, 2, 3), (1, 4, 4)),
    )
) + tuple(
    LinearTile(tokens=tokens, rows=rows, sharers=sharers, stages=8)
    for tokens, rows in ((64, 64), (64, 128), (128, 64))
    for sharers in (1, 2)
)

"""The tiles of `tile_linear` that its tests cover."""

from __future__ import annotations

from dlcore.ops.tile_linear import LinearTile


def _tiles(*shapes: tuple[int, int, int]) -> tuple[LinearTile, ...]:
    """Of (tokens, rows, stages of a deep ring)."""
    return tuple(
        LinearTile(tokens=tokens, rows=rows, splits=splits, stages=stages)
        for tokens, rows, deep in shapes
        for splits, stages in ((1, 2), (1, deep), (2, 4), (4, 3))
    )


TILES = _tiles(
    (32, 64, 12),
    (64, 64, 9),
    (64, 128, 7),
    (32, 192, 5),
    (64, 192, 7),
    (128, 192, 5),
)
SWIGLU_TILES = (*TILES, *_tiles((192, 192, 4), (256, 192, 4)))

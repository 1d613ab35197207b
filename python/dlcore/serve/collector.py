"""Python's collector of reference cycles beside streams: it stops all of them while it works.

By default it looks at young objects whenever there are 700 more of them than before. One step of
256 sequences makes more than that, most of them on their way to a client: they are walked several
times a step and then taken to be old, until a full collection, which walks the tokens of every
request, takes 20 to 75 ms. It finds nothing: no request leaves a cycle behind
(tests/py/serve/test_collector.py).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# More than a step of a thousand sequences makes: only what stays counts. What a library leaves in
# cycles (anyio does when a client goes) waits for so many objects, some hundred a request.
YOUNG = 10_000


@contextmanager
def rare_collections() -> Iterator[None]:
    """What is loaded now is taken to live until the end, and is not walked again."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()  # or the interpreter's end would leave all of it behind

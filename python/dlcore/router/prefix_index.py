"""What each node probably holds in its prefix cache: an approximate radix tree.

A prompt is cut into blocks of characters; a block's name is a hash chained over all blocks before
it, so the set of names a node was sent *is* a radix tree of its prompts, and the longest
known prefix is the longest run of known names. Old names fall out, least recently used first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

BLOCK_CHARACTERS = 256
MAX_BLOCKS_PER_PROMPT = 4096


def block_names(text: str, salt: str = "") -> tuple[bytes, ...]:
    """Names of the full leading blocks of `text`; equal salts alone share names."""
    chain = hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=8)
    names = []
    full = min(len(text) // BLOCK_CHARACTERS, MAX_BLOCKS_PER_PROMPT)
    for i in range(full):
        block = text[i * BLOCK_CHARACTERS : (i + 1) * BLOCK_CHARACTERS]
        chain.update(block.encode("utf-8", "surrogatepass"))
        names.append(chain.digest())
    return tuple(names)


class PrefixIndex:
    """Per node, a bounded set of block names. Event-loop thread only."""

    def __init__(self, max_blocks_per_node: int = 200_000) -> None:
        self._max_blocks = max_blocks_per_node
        self._held: dict[str, OrderedDict[bytes, None]] = {}

    def add(self, node: str, blocks: Sequence[bytes]) -> None:
        held = self._held.setdefault(node, OrderedDict())
        # Later blocks first, so that a prefix is never older than what continues it.
        for name in reversed(blocks):
            held[name] = None
            held.move_to_end(name)
        while len(held) > self._max_blocks:
            held.popitem(last=False)

    def match(self, node: str, blocks: Sequence[bytes]) -> int:
        """How many leading blocks the node holds."""
        held = self._held.get(node)
        if held is None:
            return 0
        for i, name in enumerate(blocks):
            if name not in held:
                return i
        return len(blocks)

    def forget(self, node: str) -> None:
        self._held.pop(node, None)

    def size(self, node: str) -> int:
        return len(self._held.get(node, ()))

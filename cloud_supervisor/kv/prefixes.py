"""The prefixes that caches hold, by chained hashes of blocks of tokens.

The hash of a block covers all tokens before it, so one lookup a block finds the longest prefix that any cache holds.
As in vLLM, the chain begins with a salt, here the tenant: the time of a prompt must not show one tenant what another
has sent. A match is confirmed by comparing tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

import numpy as np

BLOCK_TOKENS = 16

HolderT = TypeVar("HolderT")


def block_hashes(tenant: str, token_ids: Sequence[int], known: Sequence[bytes] = ()) -> Iterator[bytes]:
    """Return the hash of each full block after the blocks whose hashes are `known`."""
    before = known[-1] if known else blake2b(tenant.encode(), digest_size=16).digest()
    for start in range(len(known) * BLOCK_TOKENS, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block = np.asarray(token_ids[start : start + BLOCK_TOKENS], np.int64).tobytes()
        before = blake2b(before + block, digest_size=16).digest()
        yield before


class PrefixIndex(Generic[HolderT]):
    """The holders of each block; a holder is compared by identity."""

    def __init__(self) -> None:
        self._holders: dict[bytes, dict[int, HolderT]] = {}

    def add(self, block: bytes, holder: HolderT) -> None:
        """Note that a holder has a block."""
        self._holders.setdefault(block, {})[id(holder)] = holder

    def remove(self, block: bytes, holder: HolderT) -> None:
        """Note that a holder has a block no longer."""
        holders = self._holders[block]
        del holders[id(holder)]
        if not holders:
            del self._holders[block]

    def holders(self, block: bytes) -> int:
        """Return how many have a block."""
        return len(self._holders.get(block, ()))

    def longest(self, tenant: str, token_ids: Sequence[int]) -> tuple[int, HolderT | None]:
        """Return how many leading tokens, in full blocks, some holder seems to have, and the newest such holder."""
        blocks, found = 0, None
        for block in block_hashes(tenant, token_ids):
            holders = self._holders.get(block)
            if holders is None:
                break
            blocks += 1
            found = next(reversed(holders.values()))
        return blocks * BLOCK_TOKENS, found

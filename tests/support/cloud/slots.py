"""A pool whose slots hold paths, since keys and values depend on the whole path of a token."""

from __future__ import annotations

from typing import cast

from cloud_supervisor.kv.slots import SlotCache, SlotPool
from cloud_supervisor.kv.store import KvStore

BYTES_PER_TOKEN = 10

Path = tuple[int, ...]


class PathPool(SlotPool):
    """Each slot holds the path of its token."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.paths: dict[int, Path] = {}


def store(budget_tokens: int) -> KvStore:
    """Return a store whose budget is a whole pool."""
    pool = PathPool(budget_tokens)
    return KvStore(pool, budget_bytes=budget_tokens * BYTES_PER_TOKEN, bytes_per_token=BYTES_PER_TOKEN)


def append(cache: SlotCache, token_id: int, parent: int = -1) -> None:
    """Add a token after the one at index `parent`, as a forward does."""
    paths = cast(PathPool, cache.pool).paths
    before = paths[cache.slots[parent]] if cache.slots else ()
    cache.extend(1)
    paths[cache.slots[-1]] = (*before, token_id)


def paths_of(cache: SlotCache) -> list[Path]:
    """Return the path of each token that a cache holds."""
    paths = cast(PathPool, cache.pool).paths
    return [paths[slot] for slot in cache.slots]

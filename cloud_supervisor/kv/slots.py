"""Slots: places for the keys and values of one token each, shared by sequences that begin alike. Pure.

A cache is a list of slots. It is cut, reordered and copied without touching keys and values. A slot that several caches
hold is never written again, since each cache writes to new slots only.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence

from chaperone_common.errors import InternalError


class SlotPool:
    """A number of slots. The lowest free ones are taken first, so that memory that was never needed stays untouched."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: {capacity}; a pool needs at least one slot")
        self.capacity = capacity
        self._free: list[int] = []  # a heap of those that were used before
        self._next = 0  # all below were used before
        self._further: Counter[int] = Counter()  # by slot: its holders after the first

    @property
    def used(self) -> int:
        """Slots that some cache holds."""
        return self._next - len(self._free)

    def new_cache(self) -> SlotCache:
        """Return an empty cache."""
        return SlotCache(self)

    def take(self, count: int) -> list[int]:
        """Return free slots, which the caller holds; raises InternalError if there are too few."""
        if count > self.capacity - self.used:
            raise InternalError(
                f"kv: {count} slots are needed, {self.capacity - self.used} of {self.capacity} are free"
            )
        taken = [heapq.heappop(self._free) for _ in range(min(count, len(self._free)))]
        fresh = count - len(taken)
        taken += range(self._next, self._next + fresh)
        self._next += fresh
        return taken

    def share(self, slots: Iterable[int]) -> None:
        """Count another holder of slots that are held."""
        self._further.update(slots)

    def release(self, slots: Iterable[int]) -> None:
        """Count a holder less; a slot without one is free."""
        for slot in slots:
            if self._further[slot]:
                self._further[slot] -= 1
            else:
                del self._further[slot]
                heapq.heappush(self._free, slot)


class SlotCache:
    """The slots of one sequence.

    It holds one for each token, in the order of the forwards: of each forward the chain, then the branch tokens. So an
    entry's index is its token's absolute index in the last tree. A cache that is deleted gives its slots back.
    """

    def __init__(self, pool: SlotPool) -> None:
        self.pool = pool
        self.slots: list[int] = []

    def __del__(self) -> None:
        self.pool.release(self.slots)

    @property
    def length(self) -> int:
        """Entries held, branch tokens included; so it may be more than any path has tokens."""
        return len(self.slots)

    def extend(self, count: int) -> None:
        """Add entries in free slots; raises InternalError if the pool has too few."""
        self.slots += self.pool.take(count)

    def crop(self, length: int) -> None:
        """Keep the first `length` entries, which must be one path; forget the others.

        Raises ValueError unless `length` entries are held.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"crop: {length} is outside [0, {self.length}], the tokens held")
        self.pool.release(self.slots[length:])
        del self.slots[length:]

    def select(self, length: int, indices: Sequence[int]) -> None:
        """Keep the first `length` entries, and then those at `indices`; forget the others, and close the gaps.

        The kept entries must be one path: the next forward continues it. Raises ValueError unless all indices are at
        least `length`, held, and in ascending order.
        """
        kept = [*indices]
        if not 0 <= length <= self.length or kept != sorted({*kept}.intersection(range(length, self.length))):
            raise ValueError(f"select: {kept} are not ascending indices of [{length}, {self.length}), the rest held")
        chosen = {*kept}
        self.pool.release(self.slots[index] for index in range(length, self.length) if index not in chosen)
        self.slots[length:] = [self.slots[index] for index in kept]

    def fork(self, length: int) -> SlotCache:
        """Return a cache that shares the first `length` entries, which must be one path."""
        if not 0 <= length <= self.length:
            raise ValueError(f"fork: {length} is outside [0, {self.length}], the tokens held")
        forked = SlotCache(self.pool)
        forked.slots = self.slots[:length]
        self.pool.share(forked.slots)
        return forked

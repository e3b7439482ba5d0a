"""The KV store of a replica in virtual time: how many tokens of each session are cached, within a budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Entry:
    held: int = 0  # tokens that the cache holds
    planned: int = 0  # of the text that is being read; 0 between two requests

    @property
    def taken(self) -> int:
        return max(self.held, self.planned)


class SimulatedCaches:
    """A `KvView` over texts that only grow, and that no two sessions share.

    As in `KvStore`, a text that is being read is kept until it is whole, and the others are evicted when memory is
    short, least recently used first.
    """

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_tokens = capacity_tokens
        self._entries: dict[Hashable, _Entry] = {}  # in order of last use
        self._taken = 0
        self.evictions = 0

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the budget holds."""
        return self._capacity_tokens

    def held(self, key: Hashable, token_ids: Sequence[int], tenant: str = "") -> int | None:
        """Return how many of these leading tokens are cached for the session; None if none are."""
        entry = self._entries.get(key)
        return None if entry is None else min(entry.held, len(token_ids))

    def prepare(self, key: Hashable, tokens: int, num_choices: int) -> int:
        """Make room for a text of `tokens`, and return how many of them need not be fed."""
        entry = self._entries.pop(key, None) or _Entry()
        self._entries[key] = entry
        before = entry.taken
        entry.held = min(entry.held, tokens - num_choices)
        entry.planned = tokens
        self._taken += entry.taken - before
        if self._taken > self._capacity_tokens:
            self._evict()
        return entry.held

    def commit(self, key: Hashable, end: int) -> None:
        """Record that the cache now holds the text up to `end`."""
        entry = self._entries[key]
        entry.held = end
        if end >= entry.planned:
            entry.planned = 0

    def release(self, key: Hashable) -> None:
        """Record that the rest of the text is not read for now, so that it may be evicted."""
        if (entry := self._entries.get(key)) is not None:
            before = entry.taken
            entry.planned = 0
            self._taken += entry.taken - before

    def free(self, key: Hashable) -> None:
        """Forget a session; unknown ones are no error."""
        if (entry := self._entries.pop(key, None)) is not None:
            self._taken -= entry.taken

    def _evict(self) -> None:
        for key, entry in [*self._entries.items()]:
            if self._taken <= self._capacity_tokens:
                return
            if not entry.planned:
                self.evictions += 1
                self.free(key)

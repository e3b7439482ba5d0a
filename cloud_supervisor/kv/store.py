"""The sessions' keys and values in memory, within a budget.

A cache holds no state of its own: a caller names the whole text each time. The store finds how much of it is cached.
An evicted session is read again, which costs time and nothing else. Branch tokens are held until the session's next
text, which may continue along them.

The store has no lock. The model's thread changes it. Other threads may read `stats` at any time, and the rest only
while the model's thread is idle.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from chaperone_common.errors import ConfigError, InternalError, Overloaded, PromptTooLong
from chaperone_common.token_tree import TokenTree
from cloud_supervisor.model.ports import KvCache

_NOTHING = TokenTree(())


@dataclass(frozen=True, slots=True)
class KvStats:
    """The state of the store, and its counts since the start."""

    sessions: int  # in memory now
    bytes_used: int  # by tokens that are held, or planned by a running forward
    budget_bytes: int
    evictions: int
    rebuilt_tokens: int  # read again after an eviction


@dataclass(slots=True)
class _Entry:
    cache: KvCache
    tree: TokenTree = _NOTHING  # the tokens that the cache holds
    planned_tokens: int = 0  # that the budget is charged for; more than are held only while pinned
    pinned: bool = False  # a forward is using the cache
    doomed: bool = False  # freed while pinned; dropped when the forward ends
    spare: bool = False  # evicted before all that are not


class KvStore:
    """Caches by session, least recently used first, within a budget of bytes.

    Call `prepare`, feed the tokens that the cache lacks, then `commit`; or `abandon` if the forward failed.
    """

    def __init__(self, new_cache: Callable[[], KvCache], *, budget_bytes: int, bytes_per_token: int) -> None:
        if budget_bytes < bytes_per_token or bytes_per_token < 1:
            raise ConfigError(f"kv budget: {budget_bytes} bytes hold no token of {bytes_per_token} bytes; raise it")
        self._new_cache = new_cache
        self._budget_bytes = budget_bytes
        self._bytes_per_token = bytes_per_token
        self._entries: dict[Hashable, _Entry] = {}  # in order of last use
        self._lost_tokens: dict[Hashable, int] = {}  # evicted and not read again yet; forgotten by `free`
        self._used_tokens = 0
        self._evictions = 0
        self._rebuilt_tokens = 0

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the budget holds."""
        return self._budget_bytes // self._bytes_per_token

    @property
    def stats(self) -> KvStats:
        """A snapshot; safe to take from any thread."""
        return KvStats(
            sessions=len(self._entries),
            bytes_used=self._used_tokens * self._bytes_per_token,
            budget_bytes=self._budget_bytes,
            evictions=self._evictions,
            rebuilt_tokens=self._rebuilt_tokens,
        )

    def held(self, key: Hashable, token_ids: Sequence[int]) -> int | None:
        """Return how many of these leading tokens the session's cache holds on one path; None without a cache."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        length, indices = entry.tree.longest_path(token_ids)
        return length + len(indices)

    def prepare(self, key: Hashable, tree: TokenTree, *, num_choices: int) -> tuple[KvCache, int]:
        """Make room for a tree, and return the session's cache and how many of the chain's tokens it holds.

        The rest of the tree has to be fed. The cache keeps the longest path that the chain follows, through branch
        tokens that it holds as well. The chain's last `num_choices` tokens are always fed, since the choices need their
        logits, and so are all branch tokens.
        Raises `Overloaded`, with nothing changed, if the tree does not fit next to the forwards that are running, and
        `PromptTooLong` if it never will.
        """
        if not 0 <= num_choices <= tree.end:
            raise ValueError(f"num_choices: {num_choices} is outside [0, {tree.end}], the number of tokens")
        if key in self._entries and self._entries[key].pinned:
            raise ValueError(f"session {key!r}: a forward of it is already running")
        self._make_room(key, tree.size)
        entry = self._entries.pop(key, None) or _Entry(self._new_cache())
        self._entries[key] = entry  # last in the order: most recently used
        held = _keep(entry, tree.token_ids[: tree.end - num_choices])
        entry.pinned = True
        entry.spare = False
        self._charge(entry, tree.size)
        self._count_rebuilt(key, held, tree.end)
        return entry.cache, held

    def commit(self, key: Hashable, tree: TokenTree) -> None:
        """Record that the forward succeeded, and that the cache now holds `tree`."""
        entry = self._running(key)
        if entry.cache.length != tree.size:
            self._drop(key)
            raise InternalError(f"the cache holds {entry.cache.length} tokens after a forward of {tree.size}")
        entry.tree = tree
        entry.pinned = False
        self._charge(entry, tree.size)
        if entry.doomed:
            self._drop(key)

    def abandon(self, key: Hashable) -> None:
        """Record that the forward failed, and drop the cache, which may hold anything."""
        self._running(key)
        self._drop(key)

    def free(self, key: Hashable) -> None:
        """Forget a session, or as soon as its forward ends. Unknown sessions are no error."""
        self._lost_tokens.pop(key, None)
        entry = self._entries.get(key)
        if entry is None:
            return
        if entry.pinned:
            entry.doomed = True
        else:
            self._drop(key)

    def spare(self, key: Hashable) -> None:
        """Evict this session before all others, until it is used again. Unknown sessions are no error."""
        if key in self._entries:
            self._entries[key].spare = True

    def _make_room(self, key: Hashable, tokens: int) -> None:
        """Evict others, least recently used first, until `tokens` fit for this session."""
        own = self._entries.get(key)
        pinned_tokens = sum(entry.planned_tokens for entry in self._entries.values() if entry.pinned)
        capacity_tokens = self.capacity_tokens
        if tokens > capacity_tokens:
            raise PromptTooLong(
                f"prompt: the text and its branches have {tokens} tokens, the cloud's cache holds {capacity_tokens}; "
                "shorten the conversation, or raise kv_budget_mib on the cloud"
            )
        if pinned_tokens + tokens > capacity_tokens:
            raise Overloaded(
                f"kv budget: {tokens} tokens need {tokens * self._bytes_per_token} bytes, and"
                f" {(capacity_tokens - pinned_tokens) * self._bytes_per_token} of {self._budget_bytes} are available;"
                " try again when other requests have ended"
            )
        needed_tokens = tokens - (own.planned_tokens if own else 0)
        for other, entry in sorted(self._entries.items(), key=lambda item: not item[1].spare):
            if self._used_tokens + needed_tokens <= capacity_tokens:
                break
            if entry is not own and not entry.pinned:
                self._lost_tokens[other] = max(entry.tree.end, self._lost_tokens.get(other, 0))
                self._evictions += 1
                self._drop(other)

    def _count_rebuilt(self, key: Hashable, kept: int, planned: int) -> None:
        """Count the tokens that this forward reads again; a rebuild may come in several chunks."""
        lost = self._lost_tokens.get(key, 0)
        self._rebuilt_tokens += max(0, min(lost, planned) - kept)
        if planned >= lost:
            self._lost_tokens.pop(key, None)

    def _running(self, key: Hashable) -> _Entry:
        entry = self._entries.get(key)
        if entry is None or not entry.pinned:
            raise ValueError(f"session {key!r}: no forward of it is running; call prepare first")
        return entry

    def _charge(self, entry: _Entry, tokens: int) -> None:
        self._used_tokens += tokens - entry.planned_tokens
        entry.planned_tokens = tokens

    def _drop(self, key: Hashable) -> None:
        self._charge(self._entries.pop(key), 0)


def _keep(entry: _Entry, token_ids: tuple[int, ...]) -> int:
    """Let a cache forget all but the longest path that `token_ids` follow; return the length of that path."""
    length, indices = entry.tree.longest_path(token_ids)
    if indices:
        entry.cache.select(length, indices)
    elif length < entry.tree.size:
        entry.cache.crop(length)
    held = length + len(indices)
    entry.tree = TokenTree(token_ids[:held])
    return held

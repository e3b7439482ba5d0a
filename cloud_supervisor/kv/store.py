"""The sessions' keys and values in memory, within a budget.

A cache holds no state of its own: a caller names the whole text each time. The store finds how much of it is cached, by
this session, or by another of its tenant that begins with the same tokens: a system prompt, or an earlier turn. Those
tokens are shared, not copied. An evicted session is read again, which costs time and nothing else. Branch tokens are
held until the session's next text, which may continue along them.

The store has no lock. The model's thread changes it. Other threads may read `stats` at any time, and the rest only
while the model's thread is idle.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import count

from chaperone_common.errors import ConfigError, InternalError, Overloaded, PromptTooLong
from chaperone_common.token_tree import TokenTree, common_prefix
from cloud_supervisor.kv.prefixes import BLOCK_TOKENS, PrefixIndex, block_hashes
from cloud_supervisor.kv.slots import SlotCache, SlotPool

_NOTHING = TokenTree(())


@dataclass(frozen=True, slots=True)
class KvStats:
    """The state of the store, and its counts since the start."""

    sessions: int  # in memory now
    bytes_used: int  # by tokens that are held, or planned by a running forward
    budget_bytes: int
    evictions: int
    rebuilt_tokens: int  # read again after an eviction
    shared_tokens: int  # not read, because another text of the tenant began with them


@dataclass(slots=True, eq=False)
class _Entry:
    cache: SlotCache
    tenant: str
    tree: TokenTree = _NOTHING  # the tokens that the cache holds
    blocks: list[bytes] = field(default_factory=list)  # hashes of the chain's full blocks
    planned_tokens: int = 0  # of the text that is being read; 0 between two requests
    growth: int = 0  # slots that this text still needs
    running: bool = False  # a forward is using the cache
    doomed: bool = False  # freed while it was being read; let go when the reading ends
    spare: bool = False  # evicted before all sessions that are not


class KvStore:
    """Caches by session, least recently used first, within a budget of bytes.

    Call `prepare`, feed the tokens that the cache lacks, then `commit`; or `abandon` if the forward failed. A text that
    is read in several forwards is kept between them, until it is whole or `release` is called.
    """

    def __init__(self, pool: SlotPool, *, budget_bytes: int, bytes_per_token: int, sharing: bool = True) -> None:
        """Hold caches of a pool, in which a token takes `bytes_per_token`; raises ConfigError if none fits.

        With `sharing`, texts of one tenant share the tokens with which they begin alike.
        """
        if budget_bytes < bytes_per_token or bytes_per_token < 1:
            raise ConfigError(f"kv budget: {budget_bytes} bytes hold no token of {bytes_per_token} bytes; raise it")
        self._pool = pool
        self._sharing = sharing
        self._budget_bytes = budget_bytes
        self._bytes_per_token = bytes_per_token
        self._entries: dict[Hashable, _Entry] = {}  # in order of last use
        self._finished: dict[int, _Entry] = {}  # of sessions that were freed, for texts that begin alike; oldest first
        self._numbers = count()
        self._prefixes: PrefixIndex[_Entry] = PrefixIndex()
        self._lost_tokens: dict[Hashable, int] = {}  # evicted and not read again yet; forgotten by `free`
        self._planned_tokens = 0  # of all texts that are being read
        self._growth = 0
        self._evictions = 0
        self._rebuilt_tokens = 0
        self._shared_tokens = 0

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the budget holds."""
        return min(self._budget_bytes // self._bytes_per_token, self._pool.capacity)

    @property
    def stats(self) -> KvStats:
        """A snapshot; safe to take from any thread."""
        return KvStats(
            sessions=len(self._entries),
            bytes_used=(self._pool.used + self._growth) * self._bytes_per_token,
            budget_bytes=self._budget_bytes,
            evictions=self._evictions,
            rebuilt_tokens=self._rebuilt_tokens,
            shared_tokens=self._shared_tokens,
        )

    def held(self, key: Hashable, token_ids: Sequence[int], tenant: str = "") -> int | None:
        """Return how many of these leading tokens are cached for the session, on one path.

        That is in a cache of its own, or in one of its tenant that begins with the same tokens. None: in neither.
        """
        entry = self._entries.get(key)
        if entry is None:
            return self._shareable(tenant, token_ids)[0] or None
        return self._own_or_shared(entry, token_ids)[0]

    def prepare(self, key: Hashable, tree: TokenTree, *, num_choices: int, tenant: str = "") -> tuple[SlotCache, int]:
        """Make room for a tree, and return the session's cache and how many of the chain's tokens it holds.

        The rest of the tree has to be fed. The cache keeps the longest path that the chain follows, through branch
        tokens that it holds as well. The chain's last `num_choices` tokens are always fed, since the choices need their
        logits, and so are all branch tokens.
        Raises `Overloaded`, with nothing changed, if the tree does not fit next to the texts that are being read, and
        `PromptTooLong` if it never will.
        """
        if not 0 <= num_choices <= tree.end:
            raise ValueError(f"num_choices: {num_choices} is outside [0, {tree.end}], the number of tokens")
        if key in self._entries and self._entries[key].running:
            raise ValueError(f"session {key!r}: a forward of it is already running")
        self._check_room(key, tree.size)
        wanted = tree.token_ids[: tree.end - num_choices]
        if key in self._entries and self._own_or_shared(self._entries[key], wanted)[1]:
            self._drop(key)
        entry = self._entries.pop(key, None) or self._new_entry(tenant, wanted)
        self._entries[key] = entry  # last in the order: most recently used
        held = self._keep(entry, wanted)
        entry.running = True
        entry.spare = False
        self._plan(entry, tree.size)
        self._evict_for(entry)
        self._count_rebuilt(key, held, tree.end)
        return entry.cache, held

    def commit(self, key: Hashable, tree: TokenTree) -> None:
        """Record that the forward succeeded, and that the cache now holds `tree`."""
        entry = self._running(key)
        if (length := entry.cache.length) != tree.size:
            self._drop(key)
            raise InternalError(f"the cache holds {length} tokens after a forward of {tree.size}")
        entry.tree = tree
        entry.running = False
        self._index(entry)
        if tree.size >= entry.planned_tokens:
            self.release(key)
        else:
            self._plan(entry, entry.planned_tokens)

    def release(self, key: Hashable) -> None:
        """Record that no further forward of the text follows, so that it may be evicted. Unknown ones are no error."""
        entry = self._entries.get(key)
        if entry is None or entry.running:
            return
        self._plan(entry, 0)
        if entry.doomed:
            self._finish(key)

    def abandon(self, key: Hashable) -> None:
        """Record that the forward failed, and drop the cache, which may hold anything."""
        self._running(key)
        self._drop(key)

    def free(self, key: Hashable) -> None:
        """Let go of a session, or as soon as its text is read. Unknown sessions are no error.

        Its tokens stay while there is memory to spare, for texts that begin with them.
        """
        self._lost_tokens.pop(key, None)
        entry = self._entries.get(key)
        if entry is None:
            return
        if entry.planned_tokens:
            entry.doomed = True
        else:
            self._finish(key)

    def spare(self, key: Hashable) -> None:
        """Evict this session before all others, until it is used again. Unknown sessions are no error."""
        if key in self._entries:
            self._entries[key].spare = True

    def _own_or_shared(self, entry: _Entry, token_ids: Sequence[int]) -> tuple[int, bool]:
        """Return how many leading tokens a session's cache holds, or another one if that holds a block more, and which.

        True: the other one. A text that is being read keeps its cache.
        """
        length, indices = entry.tree.longest_path(token_ids)
        own = length + len(indices)
        if entry.planned_tokens or len(token_ids) < own + BLOCK_TOKENS:
            return own, False
        shared, _ = self._shareable(entry.tenant, token_ids)
        return (shared, True) if shared >= own + BLOCK_TOKENS else (own, False)

    def _shareable(self, tenant: str, token_ids: Sequence[int]) -> tuple[int, _Entry | None]:
        """Return how many leading tokens a cache of the tenant holds, at least a block, and its entry."""
        length, entry = self._prefixes.longest(tenant, token_ids)
        if entry is None:
            return 0, None
        shared = common_prefix(entry.tree.token_ids, tuple(token_ids))
        return (shared, entry) if shared >= length else (0, None)  # less: two texts with one hash

    def _new_entry(self, tenant: str, token_ids: tuple[int, ...]) -> _Entry:
        length, other = self._shareable(tenant, token_ids)
        if other is None:
            return _Entry(SlotCache(self._pool), tenant)
        self._shared_tokens += length
        entry = _Entry(other.cache.fork(length), tenant, TokenTree(token_ids[:length]))
        entry.blocks = other.blocks[: length // BLOCK_TOKENS]
        for block in entry.blocks:
            self._prefixes.add(block, entry)
        if not other.planned_tokens:
            self._touch(other)
        return entry

    def _touch(self, entry: _Entry) -> None:
        """Note the use of a finished text."""
        for number, other in self._finished.items():
            if other is entry:
                self._finished[number] = self._finished.pop(number)
                return

    def _keep(self, entry: _Entry, token_ids: tuple[int, ...]) -> int:
        """Let a cache forget all but the longest path that `token_ids` follow; return the length of that path."""
        length, indices = entry.tree.longest_path(token_ids)
        if indices:
            entry.cache.select(length, indices)
        elif length < entry.tree.size:
            entry.cache.crop(length)
        held = length + len(indices)
        entry.tree = TokenTree(token_ids[:held])
        while len(entry.blocks) * BLOCK_TOKENS > length:
            self._prefixes.remove(entry.blocks.pop(), entry)
        self._index(entry)
        return held

    def _index(self, entry: _Entry) -> None:
        """Offer the full blocks of a cache to other texts."""
        for block in block_hashes(entry.tenant, entry.tree.token_ids, entry.blocks) if self._sharing else ():
            entry.blocks.append(block)
            self._prefixes.add(block, entry)

    def _check_room(self, key: Hashable, tokens: int) -> None:
        """Raise an error unless `tokens` fit next to the texts that are being read."""
        if tokens > self.capacity_tokens:
            raise PromptTooLong(
                f"prompt: the text and its branches have {tokens} tokens, the cloud's cache holds "
                f"{self.capacity_tokens}; shorten the conversation, or raise kv_budget_mib on the cloud"
            )
        own = self._entries.get(key)
        others = self._planned_tokens - (own.planned_tokens if own else 0)
        if others + tokens > self.capacity_tokens:
            raise Overloaded(
                f"kv budget: {tokens} tokens need {tokens * self._bytes_per_token} bytes, and"
                f" {(self.capacity_tokens - others) * self._bytes_per_token} of {self._budget_bytes} are available;"
                " try again when other requests have ended"
            )

    def _evict_for(self, entry: _Entry) -> None:
        """Evict until all texts that are being read can grow: finished ones first, then sessions, oldest first."""
        for number in [*self._finished]:
            if self._fits:
                return
            self._let_go(self._finished.pop(number))
        for other, old in sorted(self._entries.items(), key=lambda item: not item[1].spare):
            if self._fits:
                return
            if old is not entry and not old.planned_tokens:
                self._lost_tokens[other] = max(old.tree.end, self._lost_tokens.get(other, 0))
                self._evictions += 1
                self._drop(other)

    @property
    def _fits(self) -> bool:
        return self._pool.used + self._growth <= self.capacity_tokens

    def _count_rebuilt(self, key: Hashable, kept: int, planned: int) -> None:
        """Count the tokens that this forward reads again; a rebuild may come in several chunks."""
        lost = self._lost_tokens.get(key, 0)
        self._rebuilt_tokens += max(0, min(lost, planned) - kept)
        if planned >= lost:
            self._lost_tokens.pop(key, None)

    def _running(self, key: Hashable) -> _Entry:
        entry = self._entries.get(key)
        if entry is None or not entry.running:
            raise ValueError(f"session {key!r}: no forward of it is running; call prepare first")
        return entry

    def _plan(self, entry: _Entry, tokens: int) -> None:
        """Set the size of the text that is being read, and count the slots that it still needs."""
        growth = max(0, tokens - entry.cache.length)
        self._planned_tokens += tokens - entry.planned_tokens
        self._growth += growth - entry.growth
        entry.planned_tokens, entry.growth = tokens, growth

    def _finish(self, key: Hashable) -> None:
        """Keep the chain of a session without a name, unless another cache holds it as well."""
        entry = self._entries.pop(key)
        self._plan(entry, 0)
        if entry.blocks and self._prefixes.holders(entry.blocks[-1]) == 1:
            self._keep(entry, entry.tree.token_ids)
            self._finished[next(self._numbers)] = entry
        else:
            self._let_go(entry)

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key)
        self._plan(entry, 0)
        self._let_go(entry)

    def _let_go(self, entry: _Entry) -> None:
        entry.cache.crop(0)
        for block in entry.blocks:
            self._prefixes.remove(block, entry)

"""The store's promises: a cache holds a prefix of the text, and the budget is kept."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chaperone_common.errors import ConfigError, InternalError, Overloaded, PromptTooLong
from chaperone_common.token_tree import TokenTree, common_prefix
from cloud_supervisor.kv.slots import SlotCache
from cloud_supervisor.kv.store import KvStore
from tests.support.cloud.slots import BYTES_PER_TOKEN, PathPool, append, paths_of, store


def chain(tokens: list[int]) -> TokenTree:
    return TokenTree(tuple(tokens))


def tokens_of(cache: SlotCache) -> list[int]:
    return [*paths_of(cache)[-1]] if cache.length else []


def covers(kv: KvStore, key: str, tokens: Sequence[int]) -> bool:
    """Return whether a session's cache holds all of these tokens on one path."""
    return kv.held(key, tokens) == len(tokens)


def feed(kv: KvStore, key: str, tokens: list[int], num_choices: int = 0) -> list[int]:
    """Run one whole forward; return the tokens that had to be fed."""
    cache, held = kv.prepare(key, chain(tokens), num_choices=num_choices)
    for token_id in tokens[held:]:
        append(cache, token_id)
    assert tokens_of(cache) == tokens
    kv.commit(key, chain(tokens))
    return tokens[held:]


def test_only_missing_tokens_are_fed() -> None:
    kv = store(100)
    assert feed(kv, "a", [1, 2, 3]) == [1, 2, 3]
    assert feed(kv, "a", [1, 2, 3, 4]) == [4]
    assert feed(kv, "a", [1, 9, 3]) == [9, 3]
    assert feed(kv, "a", [1, 9]) == []
    assert feed(kv, "a", [1, 9, 3]) == [3], "cropped tokens are dropped"


def test_tokens_with_choices_are_fed_again() -> None:
    kv = store(100)
    feed(kv, "a", [1, 2, 3, 4])
    assert feed(kv, "a", [1, 2, 3, 4], num_choices=1) == [4]
    assert feed(kv, "a", [1, 2, 3, 4], num_choices=4) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"num_choices: 5 is outside \[0, 4\]"):
        kv.prepare("a", chain([1, 2, 3, 4]), num_choices=5)


def test_cached_tokens_are_covered_and_kept() -> None:
    kv = store(100)
    assert not covers(kv, "a", [])
    feed(kv, "a", [1, 2, 3])
    assert [covers(kv, "a", tokens) for tokens in ([], [1, 2], [1, 2, 3])] == [True] * 3
    assert [covers(kv, "a", tokens) for tokens in ([1, 3], [1, 2, 3, 4])] == [False] * 2
    assert feed(kv, "a", [1, 2, 3, 4]) == [4], "the query changed nothing"
    kv.free("a")
    assert not covers(kv, "a", [])


def test_the_least_recently_used_is_evicted_first_and_rebuilt_whole() -> None:
    kv = store(9)
    for key in ("a", "b", "c"):
        feed(kv, key, [1, 2, 3])
    feed(kv, "a", [1, 2, 3], num_choices=1)  # "b" is the oldest now
    feed(kv, "d", [5, 6])
    assert not covers(kv, "b", [])
    assert kv.stats.evictions == 1
    assert feed(kv, "b", [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert kv.stats.rebuilt_tokens == 3
    assert not covers(kv, "c", [])


def test_a_rebuild_in_chunks_is_counted_once() -> None:
    kv = store(6)
    feed(kv, "a", [1, 2, 3, 4])
    feed(kv, "b", [1, 2, 3, 4])
    feed(kv, "a", [1, 2])
    assert kv.stats.rebuilt_tokens == 2
    feed(kv, "a", [1, 2, 3, 4, 5])
    feed(kv, "a", [1, 2, 3, 4, 5, 6])
    assert kv.stats.rebuilt_tokens == 4


def test_a_running_forward_is_never_evicted_and_its_growth_is_counted() -> None:
    kv = store(8)
    feed(kv, "a", [1])
    kv.prepare("a", chain([1, 2, 3, 4, 5]), num_choices=1)
    assert kv.stats.bytes_used == 5 * BYTES_PER_TOKEN
    with pytest.raises(Overloaded, match="4 tokens need 40 bytes, and 30 of 80 are available"):
        kv.prepare("b", chain([1, 2, 3, 4]), num_choices=1)
    with pytest.raises(ValueError, match="already running"):
        kv.prepare("a", chain([1]), num_choices=1)
    feed(kv, "b", [1, 2, 3])
    assert kv.stats.evictions == 0


def test_sessions_whose_devices_are_away_go_first_in_the_order_of_their_last_use() -> None:
    kv = store(6)
    for key in ("open", "left first", "left last"):
        feed(kv, key, [1, 2])
    kv.spare("left first")
    kv.spare("left last")
    kv.spare("unknown")
    feed(kv, "new", [1, 2])
    assert [kv.held(key, [1, 2]) for key in ("open", "left first", "left last")] == [2, None, 2]
    feed(kv, "left last", [1, 2])  # it is back
    feed(kv, "newer", [1, 2])
    assert [kv.held(key, [1, 2]) for key in ("open", "left last")] == [None, 2]


def test_one_session_beyond_the_budget_is_refused_and_evicts_nobody() -> None:
    kv = store(4)
    feed(kv, "a", [1, 2])
    with pytest.raises(PromptTooLong, match="the text and its branches have 5 tokens, the cloud's cache holds 4"):
        kv.prepare("b", chain([1, 2, 3, 4, 5]), num_choices=1)
    assert covers(kv, "a", [1, 2])
    with pytest.raises(ConfigError, match="9 bytes hold no token"):
        KvStore(PathPool(1), budget_bytes=9, bytes_per_token=BYTES_PER_TOKEN)


def test_a_failed_forward_leaves_no_cache() -> None:
    kv = store(10)
    feed(kv, "a", [1, 2])
    kv.prepare("a", chain([1, 2, 3]), num_choices=1)
    kv.abandon("a")
    assert kv.stats.bytes_used == 0
    assert feed(kv, "a", [1, 2, 3]) == [1, 2, 3]


def test_a_cache_of_unexpected_length_is_detected() -> None:
    kv = store(10)
    kv.prepare("a", chain([1, 2]), num_choices=1)
    with pytest.raises(InternalError, match="holds 0 tokens after a forward of 2"):
        kv.commit("a", chain([1, 2]))
    assert kv.stats.sessions == 0
    with pytest.raises(ValueError, match="call prepare first"):
        kv.commit("a", chain([1, 2]))


def test_freeing_during_a_forward_waits_for_its_end() -> None:
    kv = store(10)
    cache, held = kv.prepare("a", chain([1, 2]), num_choices=1)
    kv.free("a")
    assert kv.stats.sessions == 1
    for token_id in [1, 2][held:]:
        append(cache, token_id)
    kv.commit("a", chain([1, 2]))
    assert kv.stats.sessions == 0
    assert kv.stats.bytes_used == 0
    kv.free("nobody")


token_lists = st.lists(st.integers(0, 2), min_size=1, max_size=9)


@given(st.lists(token_lists, min_size=1, max_size=6), st.integers(0, 9))
def test_feeding_starts_after_the_common_prefix(lists: list[list[int]], keep: int) -> None:
    kv, before = store(9), list[int]()
    for tokens in lists:
        num_choices = min(keep, len(tokens))
        todo = feed(kv, "a", tokens, num_choices)
        assert len(tokens) - len(todo) == min(common_prefix(before, tokens), len(tokens) - num_choices)
        before = tokens


class Interleaving(RuleBasedStateMachine):
    """Concurrent sessions that prepare, commit, fail and are freed in any order."""

    BUDGET_TOKENS = 20

    def __init__(self) -> None:
        super().__init__()
        self.kv = store(self.BUDGET_TOKENS)
        self.running: dict[str, tuple[SlotCache, list[int], list[int]]] = {}
        self.committed: dict[str, list[int]] = {}  # the last list of each session, though it may have been evicted

    keys = st.sampled_from("abcd")

    @rule(key=keys, tokens=token_lists, keep=st.integers(0, 9))
    def prepare(self, key: str, tokens: list[int], keep: int) -> None:
        if key in self.running:
            return
        try:
            cache, held = self.kv.prepare(key, chain(tokens), num_choices=min(keep, len(tokens)))
        except Overloaded:
            assert sum(len(other) for _, _, other in self.running.values()) + len(tokens) > self.BUDGET_TOKENS
            return
        todo = tokens[held:]
        assert tokens_of(cache) + todo == tokens
        assert len(todo) >= min(keep, len(tokens))
        self.running[key] = cache, todo, tokens

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        cache, todo, tokens = self.running.pop(key)
        for token_id in todo:
            append(cache, token_id)
        self.kv.commit(key, chain(tokens))
        self.committed[key] = tokens
        assert covers(self.kv, key, []) == covers(self.kv, key, tokens), "either all tokens are held, or none"

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[key]
        self.kv.abandon(key)
        assert not covers(self.kv, key, [])

    @rule(key=keys)
    def free(self, key: str) -> None:
        self.kv.free(key)

    @invariant()
    def budget_holds(self) -> None:
        stats = self.kv.stats
        assert 0 <= stats.bytes_used <= stats.budget_bytes
        held = sum(len(tokens) for _, _, tokens in self.running.values())
        idle = self.committed.keys() - self.running.keys()
        held += sum(len(self.committed[key]) for key in idle if covers(self.kv, key, self.committed[key]))
        assert stats.bytes_used == held * BYTES_PER_TOKEN


TestInterleaving = Interleaving.TestCase

"""Texts that begin alike: their tokens are read once, for each tenant, and counted once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chaperone_common.errors import InternalError, Overloaded
from chaperone_common.token_tree import TokenTree
from cloud_supervisor.kv.prefixes import BLOCK_TOKENS, block_hashes
from cloud_supervisor.kv.slots import SlotCache, SlotPool
from cloud_supervisor.kv.store import KvStore
from tests.support.cloud.slots import BYTES_PER_TOKEN, PathPool, append, paths_of, store

SYSTEM = list(range(100, 100 + 2 * BLOCK_TOKENS + 3))  # two full blocks, and three tokens


def feed(kv: KvStore, key: str, tokens: Sequence[int], tenant: str = "t", num_choices: int = 0) -> int:
    """Run one whole forward; return how many tokens had to be fed."""
    tree = TokenTree(tuple(tokens))
    cache, held = kv.prepare(key, tree, num_choices=num_choices, tenant=tenant)
    for token_id in tokens[held:]:
        append(cache, token_id)
    assert paths_of(cache)[-1] == tuple(tokens)
    kv.commit(key, tree)
    return len(tokens) - held


# Slots


def test_the_lowest_free_slots_are_taken_first() -> None:
    pool = SlotPool(4)
    first, second = pool.new_cache(), pool.new_cache()
    first.extend(2)
    second.extend(1)
    first.crop(0)
    second.extend(2)
    assert second.slots == [2, 0, 1]
    with pytest.raises(InternalError, match="2 slots are needed, 1 of 4 are free"):
        first.extend(2)
    with pytest.raises(ValueError, match="capacity: 0"):
        SlotPool(0)


def test_a_shared_slot_is_free_when_its_last_holder_lets_go() -> None:
    pool = SlotPool(4)
    cache = pool.new_cache()
    cache.extend(3)
    fork = cache.fork(2)
    assert (fork.slots, pool.used) == ([0, 1], 3)
    cache.crop(0)
    assert pool.used == 2
    fork.extend(1)
    fork.select(1, [2])
    assert (fork.slots, pool.used) == ([0, 2], 2)
    with pytest.raises(ValueError, match="fork: 3"):
        fork.fork(3)
    del fork
    assert pool.used == 0, "a cache that nobody has any longer gives its slots back"


# Sharing


def test_a_system_prompt_is_read_once_for_each_tenant() -> None:
    kv = store(1000)
    assert feed(kv, "a", [*SYSTEM, 1, 2]) == len(SYSTEM) + 2
    assert kv.held("b", [*SYSTEM, 3], "t") == len(SYSTEM), "also the last three tokens, which fill no block"
    assert feed(kv, "b", [*SYSTEM, 3]) == 1
    assert kv.held("c", SYSTEM, "other") is None
    assert feed(kv, "c", SYSTEM, "other") == len(SYSTEM)
    assert kv.stats.shared_tokens == len(SYSTEM)
    assert kv.stats.bytes_used == (2 * len(SYSTEM) + 2 + 1) * BYTES_PER_TOKEN


def test_less_than_a_block_is_not_shared() -> None:
    kv = store(1000)
    feed(kv, "a", SYSTEM)
    assert kv.held("b", [*SYSTEM[: BLOCK_TOKENS - 1], 3], "t") is None


def test_a_session_takes_another_cache_that_holds_more_of_its_text() -> None:
    """As beams do: one dies, and its session goes on with the text of another."""
    kv = store(1000)
    feed(kv, "a", [*SYSTEM, *range(40)])
    feed(kv, "b", [*SYSTEM, 99])
    assert kv.held("b", [*SYSTEM, *range(40)], "t") == len(SYSTEM) + 40
    assert feed(kv, "b", [*SYSTEM, *range(40), 7]) == 1
    assert kv.stats.bytes_used == (len(SYSTEM) + 40 + 1) * BYTES_PER_TOKEN
    assert feed(kv, "b", [*SYSTEM, *range(40), 7, 8]) == 1


def test_a_session_keeps_its_cache_for_less_than_a_block() -> None:
    kv = store(1000)
    feed(kv, "a", [*SYSTEM, *range(BLOCK_TOKENS - 1)])
    feed(kv, "b", [*SYSTEM, 99])
    assert kv.held("b", [*SYSTEM, *range(40)], "t") == len(SYSTEM)
    assert feed(kv, "b", [*SYSTEM, *range(40)]) == 40


def test_an_earlier_turn_is_kept_while_there_is_memory() -> None:
    kv = store(100)
    turn = [*SYSTEM, *range(20)]
    feed(kv, "a", turn)
    kv.free("a")
    assert kv.stats.sessions == 0
    assert kv.held("b", [*turn, 7], "t") == len(turn)
    feed(kv, "other", range(500, 570), "other")
    assert kv.held("b", [*turn, 7], "t") is None
    assert kv.stats.evictions == 0, "no session was evicted"


def test_without_sharing_each_text_is_read_whole() -> None:
    kv = KvStore(PathPool(1000), budget_bytes=10_000, bytes_per_token=BYTES_PER_TOKEN, sharing=False)
    feed(kv, "a", SYSTEM)
    assert feed(kv, "b", SYSTEM) == len(SYSTEM)
    kv.free("a")
    kv.free("b")
    assert kv.stats.bytes_used == 0


def test_tokens_with_choices_are_never_shared() -> None:
    kv = store(1000)
    feed(kv, "a", SYSTEM)
    assert feed(kv, "b", SYSTEM, num_choices=10) == 10


def test_what_a_session_takes_back_is_offered_to_nobody() -> None:
    kv = store(1000)
    feed(kv, "a", SYSTEM)
    feed(kv, "a", SYSTEM[:5])
    assert kv.held("b", SYSTEM, "t") is None


def test_equal_texts_are_kept_once() -> None:
    kv = store(1000)
    for key in "abc":
        feed(kv, key, SYSTEM)
    for key in "abc":
        kv.free(key)
    assert kv.stats.bytes_used == len(SYSTEM) * BYTES_PER_TOKEN
    assert kv.held("d", SYSTEM, "t") == len(SYSTEM)


def test_a_block_stands_for_all_tokens_before_it() -> None:
    first, second = block_hashes("t", SYSTEM)
    assert [*block_hashes("t", SYSTEM, [first])] == [second]
    assert next(block_hashes("u", SYSTEM)) != first
    assert [*block_hashes("t", [0, *SYSTEM[1:]])][1] != second


def test_a_text_that_is_read_in_parts_is_kept_between_them() -> None:
    kv = store(50)
    whole = TokenTree(tuple(range(30)))
    cache, _ = kv.prepare("a", whole, num_choices=0)
    for token_id in range(10):
        append(cache, token_id)
    kv.commit("a", whole.piece(0, 10))
    with pytest.raises(Overloaded, match="25 tokens need"):
        kv.prepare("b", TokenTree(tuple(range(100, 125))), num_choices=0)
    kv.release("a")
    feed(kv, "b", range(100, 145))
    assert kv.held("a", range(30)) is None
    kv.release("unknown")


class Sharing(RuleBasedStateMachine):
    """Sessions of two tenants, with texts that begin alike, in a budget that is too small for all."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = store(8 * BLOCK_TOKENS)
        self.running: dict[str, tuple[SlotCache, TokenTree]] = {}

    @rule(
        key=st.sampled_from("abcd"),
        prefix=st.integers(0, 3),
        own=st.lists(st.integers(0, 1), min_size=1, max_size=BLOCK_TOKENS),
        choices=st.integers(0, 9),
    )
    def prepare(self, key: str, prefix: int, own: list[int], choices: int) -> None:
        if key in self.running:
            return
        tree = TokenTree((*range(100, 100 + prefix * BLOCK_TOKENS), *own))
        try:
            cache, held = self.kv.prepare(
                key, tree, num_choices=min(choices, tree.end), tenant="t" if key < "c" else "u"
            )
        except Overloaded:
            assert sum(other.size for _, other in self.running.values()) + tree.size > self.kv.capacity_tokens
            return
        assert [path[-1] for path in paths_of(cache)] == [*tree.token_ids[:held]]
        assert not held or paths_of(cache)[-1] == tree.token_ids[:held]
        self.running[key] = cache, tree

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def end(self, data: st.DataObject, fails: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        cache, tree = self.running.pop(key)
        for token_id in tree.token_ids[cache.length :]:
            append(cache, token_id)
        if fails:
            self.kv.abandon(key)
        else:
            self.kv.commit(key, tree)

    @rule(key=st.sampled_from("abcd"))
    def free(self, key: str) -> None:
        self.kv.free(key)

    @invariant()
    def budget_holds(self) -> None:
        assert 0 <= self.kv.stats.bytes_used <= self.kv.stats.budget_bytes


Sharing.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestSharing = Sharing.TestCase

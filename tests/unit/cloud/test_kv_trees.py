"""The store's promises with branch tokens: no path is read twice, and the budget counts all of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.errors import InternalError, Overloaded
from chaperone_common.token_tree import BranchToken, TokenTree
from cloud_supervisor.kv.store import KvStore
from tests.support.cloud.slots import BYTES_PER_TOKEN, Path, append, paths_of, store


def covers(kv: KvStore, key: str, tokens: Sequence[int]) -> bool:
    """Return whether a session's cache holds all of these tokens on one path."""
    return kv.held(key, tokens) == len(tokens)


def feed(kv: KvStore, token_ids: Path, branches: Sequence[BranchToken] = (), num_choices: int = 0) -> int:
    """Run one whole forward, which leaves a tree in the cache; return the length of the cached path."""
    tree = TokenTree(token_ids, tuple(branches))
    cache, held = kv.prepare("a", tree, num_choices=num_choices)
    assert paths_of(cache) == [token_ids[: end + 1] for end in range(held)]
    for token_id in token_ids[held:]:
        append(cache, token_id)
    for parent, token_id in branches:
        append(cache, token_id, parent)
    kv.commit("a", tree)
    return held


def test_accepted_branch_tokens_are_not_read_again() -> None:
    kv = store(20)
    branches = [BranchToken(1, 7), BranchToken(3, 8), BranchToken(4, 9)]
    feed(kv, (1, 2, 3), branches)
    assert feed(kv, (1, 2, 7, 8, 5), branches) == 4
    assert feed(kv, (1, 2, 7, 8, 5)) == 5, "the branches next to it are dropped"
    assert feed(kv, (1, 2, 7, 9)) == 3


def test_tokens_with_choices_are_fed_even_if_a_branch_holds_them() -> None:
    kv = store(20)
    feed(kv, (1, 2, 3), [BranchToken(1, 7), BranchToken(3, 8)])
    assert feed(kv, (1, 2, 7, 8), num_choices=1) == 3


def test_a_branch_covers_its_path() -> None:
    kv = store(20)
    feed(kv, (1, 2, 3), [BranchToken(1, 7), BranchToken(3, 8)])
    assert [covers(kv, "a", path) for path in [(1, 2), (1, 2, 7), (1, 2, 7, 8)]] == [True] * 3
    assert [covers(kv, "a", path) for path in [(1, 2, 8), (1, 2, 3, 8), (1, 2, 7, 8, 9)]] == [False] * 3
    assert feed(kv, (1, 2, 7, 8, 9)) == 4, "the query changed nothing"


def test_branch_tokens_count_while_they_are_planned_and_held() -> None:
    kv = store(6)
    branches = (BranchToken(0, 7), BranchToken(0, 8))
    kv.prepare("b", TokenTree((1, 2), branches), num_choices=0)
    assert kv.stats.bytes_used == 4 * BYTES_PER_TOKEN
    with pytest.raises(Overloaded, match="3 tokens need 30 bytes, and 20 of 60 are available"):
        kv.prepare("a", TokenTree((1,), branches), num_choices=0)
    kv.abandon("b")
    feed(kv, (1, 2), branches)
    assert kv.stats.bytes_used == 4 * BYTES_PER_TOKEN
    feed(kv, (1, 2))
    assert kv.stats.bytes_used == 2 * BYTES_PER_TOKEN


def test_a_model_that_dropped_the_branches_is_detected() -> None:
    kv = store(6)
    tree = TokenTree((1,), (BranchToken(0, 7),))
    cache, _ = kv.prepare("a", tree, num_choices=0)
    append(cache, 1)
    with pytest.raises(InternalError, match="holds 1 tokens after a forward of 2"):
        kv.commit("a", tree)
    assert kv.stats.sessions == 0


@st.composite
def trees(draw: st.DrawFn) -> tuple[Path, list[BranchToken]]:
    token_ids = draw(st.lists(st.integers(0, 1), min_size=1, max_size=6))
    branches: list[BranchToken] = []
    for index in range(draw(st.integers(0, 5))):
        parent = draw(st.integers(0, len(token_ids) + index - 1))
        branches.append(BranchToken(parent, draw(st.integers(0, 1))))
    return tuple(token_ids), branches


@given(st.lists(st.tuples(trees(), st.integers(0, 6)), min_size=1, max_size=6))
def test_feeding_starts_after_the_longest_cached_path(
    readings: list[tuple[tuple[Path, list[BranchToken]], int]],
) -> None:
    kv = store(11)
    held: set[Path] = {()}
    for (token_ids, branches), keep in readings:
        num_choices = min(keep, len(token_ids))
        ends = range(len(token_ids) - num_choices + 1)
        assert feed(kv, token_ids, branches, num_choices) == max(end for end in ends if token_ids[:end] in held)
        assert kv.stats.bytes_used == (len(token_ids) + len(branches)) * BYTES_PER_TOKEN
        found = [token_ids[: end + 1] for end in range(len(token_ids))]
        for parent, token_id in branches:
            found.append((*found[parent], token_id))
        held = {(), *found}

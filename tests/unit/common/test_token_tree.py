"""Token trees of a few tokens: numbering, positions, paths, pieces and masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common.token_tree import BranchToken, TokenTree, common_prefix

#   1 - 2 - 3 - 4       the chain
#       |   + - 8 - 9   indices 4 (which follows index 2) and 5
#       + - 3 - 4 - 7   6, 7, 8: the first two of them as in the chain
TREE = TokenTree((1, 2, 3, 4), tuple(BranchToken(*pair) for pair in [(2, 8), (4, 9), (1, 3), (6, 4), (7, 7)]))

#   7 - 8 - 9           a text of eight tokens, and a chain of two after it
#       |   + - 14
#       + - 10 - 12 - 13
#       + - 11
SPAN = TokenTree(
    (50, 51),
    (BranchToken(8, 5), BranchToken(8, 6), BranchToken(10, 7), BranchToken(12, 8), BranchToken(9, 5)),
    start=8,
)


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    """Draw any tree of some tokens, at any place."""
    token_ids, start = tuple(draw(st.lists(st.integers(0, 2), max_size=4))), draw(st.integers(1, 4))
    branches: list[BranchToken] = []
    for index in range(start + len(token_ids), start + len(token_ids) + draw(st.integers(0, 6))):
        branches.append(BranchToken(draw(st.integers(0, index - 1)), draw(st.integers(0, 2))))
    return TokenTree(token_ids, tuple(branches), start)


def ancestors(tree: TokenTree, index: int) -> set[int]:
    """Return the indices on the path to a token, found from parent to parent."""
    if index < tree.end:
        return {*range(index + 1)}
    return {index, *ancestors(tree, tree.branches[index - tree.end].parent)}


def test_chain_tokens_keep_their_position_and_branch_tokens_are_numbered_after_them() -> None:
    assert (TREE.end, TREE.size) == (4, 9)
    assert (SPAN.end, SPAN.size) == (10, 15)
    assert TokenTree((1, 2)).size == TokenTree((1, 2)).end == 2


def test_the_position_of_a_branch_token_is_one_more_than_that_of_its_parent() -> None:
    assert TREE.positions == [3, 4, 2, 3, 4]
    assert SPAN.positions == [9, 9, 10, 11, 10]
    assert TokenTree((), (BranchToken(0, 5), BranchToken(1, 5)), start=1).positions == [1, 2]
    assert TokenTree((1, 2)).positions == []


def test_the_depth_is_the_length_of_the_longest_path() -> None:
    assert (TREE.depth, SPAN.depth) == (5, 12)
    assert TokenTree(TREE.token_ids, TREE.branches[:1]).depth == TokenTree(TREE.token_ids).depth == 4


def test_each_branch_token_ends_a_text() -> None:
    assert TREE.paths() == [(1, 2, 3, 8), (1, 2, 3, 8, 9), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 7)]


@pytest.mark.parametrize("parent", [-1, 4, 5])
def test_a_parent_comes_before_its_child(parent: int) -> None:
    with pytest.raises(ValueError, match=f"branches: token 1 follows number {parent} of the 4 tokens before it"):
        TokenTree((1, 2, 3), (BranchToken(0, 7), BranchToken(parent, 8)))


def test_a_child_is_found_by_its_parent_and_its_id() -> None:
    assert [SPAN.child(parent, 5) for parent in range(7, 15)] == [None, 10, 14, None, None, None, None, None]
    assert SPAN.child(8, 6) == 11
    assert TokenTree((50, 51), start=8).child(8, 6) is None


def test_of_siblings_with_one_id_the_first_is_the_child() -> None:
    tree = TokenTree((1,), (BranchToken(0, 5), BranchToken(0, 5), BranchToken(2, 6)))
    assert tree.child(0, 5) == 1
    assert tree.child(0, 6) is None


@pytest.mark.parametrize(
    ("token_ids", "path"),
    [
        ((1, 2, 3, 4, 5), (4, [])),
        ((1, 2, 3, 8, 9, 5), (3, [4, 5])),
        ((1, 2, 3, 8, 5), (3, [4])),
        ((1, 2, 3, 8), (3, [4])),
        ((1, 2, 3, 9), (3, [])),
        ((1, 2, 3, 4, 7), (2, [6, 7, 8])),  # longer than the chain, whose tokens it repeats at first
        ((1, 2, 3, 4), (4, [])),  # the chain is preferred
        ((5, 2, 3, 8), (0, [])),
        ((), (0, [])),
    ],
)
def test_the_longest_path_is_followed(token_ids: tuple[int, ...], path: tuple[int, list[int]]) -> None:
    assert TREE.longest_path(token_ids) == path


def test_without_branches_the_longest_path_is_the_common_prefix() -> None:
    for token_ids in [(1, 2, 3, 4, 5), (1, 2, 9), (9,), ()]:
        assert TokenTree(TREE.token_ids).longest_path(token_ids) == (common_prefix(TREE.token_ids, token_ids), [])


def test_the_last_piece_has_the_branches() -> None:
    assert TREE.piece(0, 2) == TokenTree((1, 2))
    assert TREE.piece(2, 3) == TokenTree((3,), start=2)
    assert TREE.piece(3, 4) == TokenTree((4,), TREE.branches, start=3)
    assert TREE.piece(0, 4) == TREE


def test_pruning_numbers_the_branches_that_remain_after_the_shorter_chain() -> None:
    assert SPAN.pruned(10, first_parent=8, limit=99) == SPAN
    assert SPAN.pruned(10, first_parent=9, limit=99).branches == ((9, 5),)
    assert SPAN.pruned(10, first_parent=8, limit=12).branches == ((8, 5), (8, 6), (10, 7), (9, 5))
    shorter = SPAN.pruned(9, first_parent=8, limit=99)
    assert (shorter.token_ids, shorter.start) == ((50,), 8)
    assert shorter.branches == ((8, 5), (8, 6), (9, 7), (11, 8))
    assert SPAN.pruned(10, first_parent=10, limit=99).branches == ()


def test_a_mask_shows_each_token_its_path() -> None:
    tree = TokenTree((8,), (BranchToken(0, 5), BranchToken(1, 6), BranchToken(2, 7)), start=1)
    assert tree.visible().astype(int).tolist() == [[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]]


@given(tree=trees())
def test_masks_and_positions_agree_with_the_parents(tree: TokenTree) -> None:
    mask = tree.visible()
    assert mask.shape == (tree.size - tree.start, tree.size)
    for row, index in zip(mask, range(tree.start, tree.size), strict=True):
        assert {*np.flatnonzero(row)} == ancestors(tree, index)
    assert tree.positions == [len(ancestors(tree, index)) - 1 for index in range(tree.end, tree.size)]

"""Where branch tokens stand, and how far a list follows them, on trees of a few tokens."""

from __future__ import annotations

import pytest

from chaperone_common.token_tree import deepest, longest_path, paths, positions, shifted
from chaperone_common.types import BranchToken, common_prefix

#   1 - 2 - 3 - 4       the list
#       |   + - 8 - 9   indices 4 (which follows index 2) and 5
#       + - 3 - 4 - 7   6, 7, 8: the first two of them as in the list
HELD = (1, 2, 3, 4)
BRANCHES = tuple(BranchToken(*pair) for pair in [(2, 8), (4, 9), (1, 3), (6, 4), (7, 7)])


def test_a_branch_token_stands_one_further_than_its_parent() -> None:
    assert positions(4, BRANCHES) == [3, 4, 2, 3, 4]
    assert deepest(4, BRANCHES) == 5
    assert deepest(4, BRANCHES[:1]) == deepest(4, ()) == 4


def test_each_branch_token_ends_a_text() -> None:
    assert paths(HELD, BRANCHES) == [(1, 2, 3, 8), (1, 2, 3, 8, 9), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 7)]


@pytest.mark.parametrize("parent", [-1, 4, 5])
def test_a_parent_comes_before_its_child(parent: int) -> None:
    with pytest.raises(ValueError, match=f"branches: token 1 follows number {parent} of the 4 before it"):
        positions(3, [BranchToken(0, 7), BranchToken(parent, 8)])


def test_parents_can_be_counted_from_another_token() -> None:
    assert shifted([BranchToken(0, 7), BranchToken(3, 8)], 5) == (BranchToken(5, 7), BranchToken(8, 8))
    assert shifted(shifted(BRANCHES, 5), -5) == BRANCHES


@pytest.mark.parametrize(
    ("token_ids", "path"),
    [
        ((1, 2, 3, 4, 5), (4, [])),
        ((1, 2, 3, 8, 9, 5), (3, [4, 5])),
        ((1, 2, 3, 8, 5), (3, [4])),
        ((1, 2, 3, 8), (3, [4])),
        ((1, 2, 3, 9), (3, [])),
        ((1, 2, 3, 4, 7), (2, [6, 7, 8])),  # longer than the list that it equals at first
        ((1, 2, 3, 4), (4, [])),  # the list is preferred
        ((5, 2, 3, 8), (0, [])),
        ((), (0, [])),
    ],
)
def test_the_longest_path_is_followed(token_ids: tuple[int, ...], path: tuple[int, list[int]]) -> None:
    assert longest_path(HELD, BRANCHES, token_ids) == path


def test_without_branches_it_is_the_common_prefix() -> None:
    for token_ids in [(1, 2, 3, 4, 5), (1, 2, 9), (9,), ()]:
        assert longest_path(HELD, (), token_ids) == (common_prefix(HELD, token_ids), [])

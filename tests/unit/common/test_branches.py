"""Branch tokens beside a short list: how deep they stand, and which one follows a token."""

from __future__ import annotations

from chaperone_common.branches import child, depths
from chaperone_common.types import BranchToken

#   0 - 1 - 2       the list: the token before a chain of two, and the chain
#       |   + - 7
#       + - 3 - 5 - 6
#       + - 4
BRANCHES = (BranchToken(1, 5), BranchToken(1, 6), BranchToken(3, 7), BranchToken(5, 8), BranchToken(2, 5))


def test_a_branch_token_stands_one_deeper_than_its_parent() -> None:
    assert depths(3, BRANCHES) == [2, 2, 3, 4, 3]
    assert depths(1, (BranchToken(0, 5), BranchToken(1, 5))) == [1, 2]
    assert depths(8, ()) == []


def test_a_child_is_found_by_its_parent_and_its_id() -> None:
    assert [child(3, BRANCHES, parent, 5) for parent in range(8)] == [None, 3, 7, None, None, None, None, None]
    assert child(3, BRANCHES, 1, 6) == 4
    assert child(3, (), 1, 6) is None


def test_of_siblings_with_one_id_the_first_is_the_child() -> None:
    branches = (BranchToken(0, 5), BranchToken(0, 5), BranchToken(2, 6))
    assert child(1, branches, 0, 5) == 1
    assert child(1, branches, 0, 6) is None

"""Branch tokens beside a list of tokens: where they stand, and which one follows a token.

A parent is an index: of a token of the list or, beyond its end, of a branch token. There are two such lists, and so two
numberings. In a frame, a `Span`, a `Judging` and a reading the list is the token before the chain, which is 0, and then
the chain. In `chaperone_common.token_tree` and the cache, which know no chain, it is the whole text. They differ by
the place of the token before the chain in the text; `shifted` there leads from one to the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaperone_common.types import BranchToken


def depths(length: int, branches: Sequence[BranchToken]) -> list[int]:
    """How far behind the first of `length` tokens each branch token beside them stands: one further than its parent.

    Every parent must come before its child.
    """
    found: list[int] = []
    for parent, _ in branches:
        found.append(1 + (parent if parent < length else found[parent - length]))
    return found


def child(length: int, branches: Sequence[BranchToken], parent: int, token_id: int) -> int | None:
    """The index of the first branch token beside `length` tokens that follows this parent and has this id."""
    return next((index for index, branch in enumerate(branches, length) if branch == (parent, token_id)), None)

"""Branch tokens beside a text: where they stand, and how far another text follows them.

In here a parent is an index into the whole text and the branch tokens behind it; see `chaperone_common.branches`.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaperone_common.branches import depths
from chaperone_common.types import BranchToken, common_prefix


def shifted(branches: Sequence[BranchToken], by: int) -> tuple[BranchToken, ...]:
    """The same branches, with parents that count from a token `by` places further ahead."""
    return tuple(BranchToken(parent + by, token_id) for parent, token_id in branches)


def positions(length: int, branches: Sequence[BranchToken]) -> list[int]:
    """Where in its text each branch token stands, beside `length` tokens.

    Raises ValueError for a parent that does not come before its child.
    """
    for index, (parent, _) in enumerate(branches):
        if not 0 <= parent < length + index:
            raise ValueError(f"branches: token {index} follows number {parent} of the {length + index} before it")
    return depths(length, branches)


def deepest(length: int, branches: Sequence[BranchToken]) -> int:
    """How many tokens the longest path has; raises ValueError as `positions` does."""
    return max([length, *(position + 1 for position in positions(length, branches))])


def paths(token_ids: Sequence[int], branches: Sequence[BranchToken]) -> list[tuple[int, ...]]:
    """The text that ends with each branch token: the list up to where the branch leaves it, and then the branch."""
    found: list[tuple[int, ...]] = []
    for parent, token_id in branches:
        before = token_ids[: parent + 1] if parent < len(token_ids) else found[parent - len(token_ids)]
        found.append((*before, token_id))
    return found


def longest_path(
    held: tuple[int, ...], branches: Sequence[BranchToken], token_ids: tuple[int, ...]
) -> tuple[int, list[int]]:
    """How far `token_ids` follow a tree: so many tokens of the list `held`, then the branch tokens at these indices."""
    shared = common_prefix(held, token_ids)
    best: tuple[int, list[int]] = (shared, [])
    followed: dict[int, tuple[int, list[int]]] = {}  # branch tokens, by index
    for index, (parent, token_id) in enumerate(branches, start=len(held)):
        path = followed.get(parent) if parent >= len(held) else (parent + 1, []) if parent < shared else None
        if path is None:
            continue
        trunk, indices = path
        length = trunk + len(indices)
        if length < len(token_ids) and token_ids[length] == token_id:
            followed[index] = trunk, [*indices, index]
            best = max(best, followed[index], key=lambda found: found[0] + len(found[1]))
    return best

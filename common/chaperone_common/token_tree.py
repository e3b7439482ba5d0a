"""Token trees: a chain of tokens, and branch tokens next to it.

Every token has one absolute index, everywhere in Chaperone. A chain token's index is its position in the sequence.
Branch tokens are numbered after the chain, in order:

    index    0 ... start - 1   |   start ... end - 1   |   end ... size - 1
    token    the text before   |   the chain           |   the branch tokens

Only `wire` converts these indices, to the shorter numbers of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class BranchToken(NamedTuple):
    """A token next to a chain: an alternative that the cloud verifies in the same forward."""

    parent: int  # the absolute index of the token that it follows
    token_id: int


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A chain of tokens from position `start` on, and branch tokens next to it.

    Raises ValueError unless every parent comes before its child.
    """

    token_ids: tuple[int, ...]  # the chain
    branches: tuple[BranchToken, ...] = ()
    start: int = 0  # tokens before the chain; 0 if the tree holds the whole text

    def __post_init__(self) -> None:
        for index, (parent, _) in enumerate(self.branches, start=self.end):
            if not 0 <= parent < index:
                raise ValueError(
                    f"branches: token {index - self.end} follows number {parent} of the {index} tokens before it"
                )

    @property
    def end(self) -> int:
        """The position after the chain, and the index of the first branch token."""
        return self.start + len(self.token_ids)

    @property
    def size(self) -> int:
        """Tokens with an index: the text before the chain, the chain, and the branch tokens."""
        return self.end + len(self.branches)

    @property
    def positions(self) -> list[int]:
        """The position of each branch token in its own text: one more than the position of its parent."""
        found: list[int] = []
        for parent, _ in self.branches:
            found.append(1 + (parent if parent < self.end else found[parent - self.end]))
        return found

    @property
    def depth(self) -> int:
        """Tokens on the longest path, the text before the chain included."""
        return max([self.end, *(position + 1 for position in self.positions)])

    def child(self, parent: int, token_id: int) -> int | None:
        """Return the index of the first branch token that follows `parent` and has this id, or None."""
        wanted = (parent, token_id)
        return next((index for index, branch in enumerate(self.branches, self.end) if branch == wanted), None)

    def paths(self) -> list[tuple[int, ...]]:
        """Return the chain's text up to the branch, and then the branch, for each branch token.

        The tree must hold the whole text.
        """
        found: list[tuple[int, ...]] = []
        for parent, token_id in self.branches:
            before = self.token_ids[: parent + 1] if parent < self.end else found[parent - self.end]
            found.append((*before, token_id))
        return found

    def longest_path(self, token_ids: Sequence[int]) -> tuple[int, list[int]]:
        """Return how far a text follows the tree: a number of chain tokens, then the indices of branch tokens.

        The tree must hold the whole text. Between paths of one length, the one with more chain tokens wins.
        """
        token_ids = tuple(token_ids)
        shared = common_prefix(self.token_ids, token_ids)
        best: tuple[int, list[int]] = (shared, [])
        followed: dict[int, tuple[int, list[int]]] = {}  # paths, by the index of their last branch token
        for index, (parent, token_id) in enumerate(self.branches, start=self.end):
            path = followed.get(parent) if parent >= self.end else (parent + 1, []) if parent < shared else None
            if path is None:
                continue
            trunk, indices = path
            length = trunk + len(indices)
            if length < len(token_ids) and token_ids[length] == token_id:
                followed[index] = trunk, [*indices, index]
                best = max(best, followed[index], key=lambda found: found[0] + len(found[1]))
        return best

    def piece(self, start: int, end: int) -> TokenTree:
        """Return the chain's tokens [start, end); the last piece has the branches, too."""
        token_ids = self.token_ids[start - self.start : end - self.start]
        return TokenTree(token_ids, self.branches if end == self.end else (), start)

    def pruned(self, end: int, *, first_parent: int, limit: int) -> TokenTree:
        """Return the tree with its chain cut at `end`, and without the branches that cannot be followed by a choice.

        Only branches that leave the chain at index `first_parent` or later remain. Their tokens have a position below
        `limit` - 1, so that the position after each of them is below `limit`.
        """
        moved = {index: index for index in range(first_parent, end)}  # new indices of parents, by the old ones
        kept: list[BranchToken] = []
        for index, (branch, position) in enumerate(zip(self.branches, self.positions, strict=True), self.end):
            if branch.parent in moved and position + 1 < limit:
                moved[index] = end + len(kept)
                kept.append(BranchToken(moved[branch.parent], branch.token_id))
        return TokenTree(self.token_ids[: end - self.start], tuple(kept), self.start)

    def visible(self) -> NDArray[np.bool_]:
        """Return which tokens are on the path to each token of the tree, itself included: [size - start, size]."""
        indices = np.arange(self.size)
        rows = np.empty((self.size - self.start, self.size), np.bool_)
        rows[: len(self.token_ids)] = indices <= indices[self.start : self.end, None]
        for index, (parent, _) in enumerate(self.branches, start=self.end):
            rows[index - self.start] = indices <= parent if parent < self.end else rows[parent - self.start]
            rows[index - self.start, index] = True
        return rows


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading tokens two sequences share."""
    shortest = min(len(left), len(right))
    if left[:shortest] == right[:shortest]:
        return shortest
    return next((index for index in range(shortest) if left[index] != right[index]), shortest)

"""The branch tokens to send with a span: those that are worth the time to read them.

A branch token that stands makes one token more final in the same round trip. The cloud reads it in `read_token_ms`. In
that time the average schedule makes

    rate * read_token_ms

tokens final. So a branch token is sent if its chance to stand is above that, plus a margin for its upload (`_UPLOAD` in
`adaptive.py`). Chances only fall along a branch, so a prefix of it is sent.
"""

from __future__ import annotations

from edge_client.planner.actions import BranchPrefix
from edge_client.planner.draft_tree import DraftTree


def branches_worth_sending(tree: DraftTree, start: int, end: int, least: float) -> tuple[BranchPrefix, ...]:
    """Return the prefixes, in the span [start, end), whose tokens stand with a chance of at least `least`.

    A token stands if the cloud agrees with the text up to the branch, and then chooses the branch.
    """
    prefixes, reached = [], 1.0
    for position in range(start, end):
        if tree.proposal(position) is None:  # the runner-up is unknown
            continue
        tokens = sum(reached * chance >= least for chance in tree.chances(position))
        if tokens:
            prefixes.append(BranchPrefix(position, tokens))
        reached *= 1.0 - tree.risk(position)
    return tuple(prefixes)

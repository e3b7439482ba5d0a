"""Which branches to send beside a span: the tokens that are worth their reading.

A branch token that stands settles one token more in the same round. Reading it takes the cloud `read_token_ms`, in
which the average schedule settles rate * read_token_ms tokens. So it is sent if its chance to stand is above that, by a
margin that pays for its bytes on the way up (`_UPLOAD` in `adaptive.py`). Along a branch the chances only fall: what is
sent of one is its beginning.
"""

from __future__ import annotations

from edge_client.planner.actions import BranchPrefix
from edge_client.planner.draft_tree import DraftTree


def branches_worth_sending(tree: DraftTree, start: int, end: int, least: float) -> tuple[BranchPrefix, ...]:
    """Of the branches that begin in the span [start, end), the tokens that stand with a chance of at least `least`.

    The chances are those before the span is read: that the cloud agrees up to the branch, and then chooses it.
    """
    sprouts, reached = [], 1.0
    for position in range(start, end):
        if tree.proposal(position) is None:  # nothing is known of what else the device might have written there
            continue
        tokens = sum(reached * chance >= least for chance in tree.chances(position))
        if tokens:
            sprouts.append(BranchPrefix(position, tokens))
        reached *= 1.0 - tree.risk(position)
    return tuple(sprouts)

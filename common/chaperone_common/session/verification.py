"""The one rule, on the cloud's end: a draft token stands if and only if it equals the cloud's own choice."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

from chaperone_common.token_tree import TokenTree


class SpanOutcome(NamedTuple):
    """The result of comparing a run of tokens with the cloud's choices."""

    stands: int  # leading tokens that stand
    token_id: int  # the cloud's own token after them
    deviations: tuple[int, ...]  # indices of audited tokens that differ from the cloud's choice


def verify(
    token_ids: Sequence[int], choices: Sequence[int], *, audited: int = 0, eos_token_ids: Container[int] = ()
) -> SpanOutcome:
    """Compare tokens with the cloud's choices at the same positions, and at the position after them.

    The first `audited` tokens are committed already. They always stand, and count as deviations where they differ.
    After them the first difference is the override. Without a difference, the last choice is the bonus.
    An end-of-text token that both chose ends the text there, as the cloud's own token.
    Raises ValueError unless there is exactly one choice more than tokens.
    """
    if len(choices) != len(token_ids) + 1:
        raise ValueError(f"{len(token_ids)} tokens need {len(token_ids) + 1} choices, got {len(choices)}")
    stands = min(audited, len(token_ids))
    deviations = tuple(index for index in range(stands) if token_ids[index] != choices[index])
    while stands < len(token_ids) and token_ids[stands] == choices[stands] and choices[stands] not in eos_token_ids:
        stands += 1
    return SpanOutcome(stands, choices[stands], deviations)


def follow_branches(
    tree: TokenTree, choices: Sequence[int], *, position: int, token_id: int, eos_token_ids: Container[int] = ()
) -> tuple[int, ...]:
    """Return the cloud's choices after its own token, for as long as the branches contain that token.

    The cloud's own token is `token_id` at `position`, after a chain that stands up to there. If a branch token is equal
    to it, that token stands, and the choice after it is the next own token, and so on. So the last choice returned is
    always the cloud's own. Nothing follows an end-of-text token.
    `choices` has one id for each branch token: the choice after it. Raises ValueError otherwise.
    """
    if len(choices) != len(tree.branches):
        raise ValueError(f"{len(tree.branches)} branch tokens need as many choices, got {len(choices)}")
    index, further = position - 1, list[int]()
    while token_id not in eos_token_ids and (found := tree.child(index, token_id)) is not None:
        index, token_id = found, choices[found - tree.end]
        further.append(token_id)
    return tuple(further)

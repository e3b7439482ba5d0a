"""The cloud's side of the one rule: a draft token stands if and only if it is the cloud's own choice."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

from chaperone_common.branches import child
from chaperone_common.types import BranchToken


class Judgement(NamedTuple):
    """What the cloud's choices say about a run of tokens."""

    stands: int  # leading tokens that stand
    token_id: int  # the cloud's own token after them
    deviations: tuple[int, ...]  # indices of audited tokens that are not the cloud's choice


def judge(
    token_ids: Sequence[int], choices: Sequence[int], *, audited: int = 0, eos_token_ids: Container[int] = ()
) -> Judgement:
    """Judge tokens against the cloud's choices at the same positions, and one position more.

    The first `audited` tokens are already committed: they stand whatever the cloud thinks, and are counted where
    they deviate. After them the first difference is the override; without one, the last choice is the bonus. An
    end-of-text token that both chose ends the text there, as the cloud's own token.
    Raises ValueError unless there is exactly one choice more than tokens.
    """
    if len(choices) != len(token_ids) + 1:
        raise ValueError(f"{len(token_ids)} tokens need {len(token_ids) + 1} choices, got {len(choices)}")
    stands = min(audited, len(token_ids))
    deviations = tuple(index for index in range(stands) if token_ids[index] != choices[index])
    while stands < len(token_ids) and token_ids[stands] == choices[stands] and choices[stands] not in eos_token_ids:
        stands += 1
    return Judgement(stands, choices[stands], deviations)


def walk_on(
    branches: Sequence[BranchToken],
    choices: Sequence[int],
    judgement: Judgement,
    *,
    length: int,
    eos_token_ids: Container[int] = (),
) -> tuple[int, ...]:
    """The cloud's choices after its own token, as far as the branches foresaw them.

    The branches stand beside `length` tokens: the one before those that were judged, and these.
    While the latest choice is itself a branch token at its place, that token stands, and the choice after it is the
    next; so the last one returned is the cloud's own. Nothing follows an end-of-text token. `choices` has one id for
    each branch token, chosen after it.
    Raises ValueError otherwise.
    """
    if len(choices) != len(branches):
        raise ValueError(f"{len(branches)} branch tokens need as many choices, got {len(choices)}")
    node, token_id = judgement.stands, judgement.token_id
    further: list[int] = []
    while token_id not in eos_token_ids and (found := child(length, branches, node, token_id)) is not None:
        node, token_id = found, choices[found - length]
        further.append(token_id)
    return tuple(further)

"""The drafted tokens that the cloud has not judged: the text's proposals, and branches next to them.

A branch begins where the cloud may override, with the runner-up of the proposal there. If the cloud chooses the
runner-up, the branch becomes the text, and the device drafts none of it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from chaperone_common.token_tree import BranchToken, common_prefix
from chaperone_common.types import Proposal


@dataclass(slots=True)
class Branch:
    """A continuation that begins with `first` at position `start`, and the proposals after it.

    The model was not fed its last proposal yet, like the last token of the text.
    """

    row: int
    start: int
    first: int
    # The chance that the cloud writes the branch up to each token, `first` included, if it agrees up to `start`.
    chances: list[float]
    proposals: list[Proposal] = field(default_factory=list)

    @property
    def unread(self) -> int:
        """The last token, which is fed next."""
        return self.proposals[-1].token_id if self.proposals else self.first

    def agreed(self, text: Sequence[int]) -> int:
        """Return the number of leading proposals that a text with `first` holds after it."""
        return common_prefix([proposal.token_id for proposal in self.proposals], text[self.start + 1 :])


class DraftTree:
    """Proposals by position, and branches by the position where they begin."""

    def __init__(
        self,
        rows: int,
        proposal: Callable[[int], Proposal | None],
        *,
        limit: int,
        eos_token_ids: Collection[int],
        risk: Callable[[float], float],
        hit: Callable[[], float],
    ) -> None:
        """Begin with `rows` free rows for branches, numbered from 1. Branches end at `limit` or with end-of-text.

        `proposal` returns the text's provisional proposal at a position; see `DeviceSession.proposal`. `risk` corrects
        a signal's risk. `hit` is the chance that an override is the runner-up.
        """
        self.branches: dict[int, Branch] = {}
        self._rows = rows
        self._limit = limit
        self._eos_token_ids = eos_token_ids
        self._proposal = proposal
        self._risks: dict[int, float] = {}  # of provisional positions, as corrected when they were drafted
        self._free = list(range(rows, 0, -1))
        self._risk = risk
        self._hit = hit

    def add(self, position: int) -> None:
        """Add the text's proposal at a position."""
        self._risks[position] = self._risk(self._proposed(position).signal.risk)

    def proposal(self, position: int) -> Proposal | None:
        """Return the text's proposal at a position; None if there is none, or it is settled."""
        return self._proposal(position) if position in self._risks else None

    def risk(self, position: int) -> float:
        """Return the chance of an override at a position; 0 if nothing was proposed there."""
        return self._risks.get(position, 0.0)

    @property
    def free_rows(self) -> int:
        """The number of branches that can begin before one is dropped."""
        return len(self._free)

    def chances(self, start: int) -> Sequence[float]:
        """Return the chance of each token of the branch at `start`, planted or not, if the cloud agrees up to it."""
        branch = self.branches.get(start)
        return branch.chances if branch is not None else (self._risks[start] * self._hit(),)

    def branch_tokens(self, start: int, end: int, prefixes: Iterable[tuple[int, int]]) -> tuple[BranchToken, ...]:
        """Return the branch tokens next to a span [start, end), with absolute indices.

        `prefixes` are (start, count) pairs. For each, return up to `count` tokens of the branch at `start`: the
        runner-up, then its drafted continuation. Stop before end-of-text and before the length limit. Leave out a
        branch that begins where the span has no proposal.
        """
        tokens: list[BranchToken] = []
        for position, wanted in prefixes:
            if not start <= position < end or position not in self._risks:
                continue
            branch = self.branches.get(position)
            drafted = branch.proposals if branch is not None else ()
            token_ids = [self._proposed(position).runner_up, *(proposal.token_id for proposal in drafted)]
            parent = position - 1
            for token_id in takewhile(self._goes_on, token_ids[: min(wanted, self._limit - position)]):
                tokens.append(BranchToken(parent, token_id))
                parent = end + len(tokens) - 1
        return tuple(tokens)

    def settle(self, final: int) -> None:
        """Drop the proposals and branches below `final`: their positions are judged."""
        self._risks = {position: risk for position, risk in self._risks.items() if position >= final}
        for start in [start for start in self.branches if start < final]:
            self._drop(start)

    def cut(self, length: int) -> None:
        """Drop the text's proposals from `length` on, and the branches that begin there."""
        self._risks = {position: risk for position, risk in self._risks.items() if position < length}
        for start in [start for start in self.branches if start >= length]:
            self._drop(start)

    def take(self, position: int, token_id: int) -> Branch | None:
        """Return the branch that the cloud's token at a position makes the text, if there is one. Drop all branches."""
        branch = self.branches.get(position)
        if branch is not None and branch.first != token_id:
            branch = None
        self.drop_branches()
        return branch

    def drop_branches(self) -> None:
        """Drop all branches."""
        for start in list(self.branches):
            self._drop(start)

    def grow(self, start: int, proposal: Proposal) -> None:
        """Append a proposal to a branch."""
        branch = self.branches[start]
        branch.proposals.append(proposal)
        branch.chances.append(branch.chances[-1] * (1.0 - self._risk(proposal.signal.risk)))

    def plant(self, start: int) -> Branch:
        """Begin a branch. If no row is free, drop the least likely branch."""
        if not self._free:
            self._drop(self._least_likely()[1])
        branch = Branch(self._free.pop(), start, self._proposed(start).runner_up, [*self.chances(start)])
        self.branches[start] = branch
        return branch

    def sites(self) -> Iterator[tuple[float, int]]:
        """Yield the chance and the start of each branch that can be drafted further, planted or not.

        If no row is free, a new branch must be likelier than the least likely one was when it began. Otherwise two
        branches would take turns for ever, because each becomes less likely with every token.
        """
        if not self._rows:
            return
        bar = -math.inf if self._free else self._least_likely()[0]
        for reached, start in self._reached():
            branch = self.branches.get(start)
            length = start + 1 + (len(branch.proposals) if branch is not None else 0)
            last = branch.unread if branch is not None else self._proposed(start).runner_up
            if length < self._limit and last not in self._eos_token_ids:
                chance = self.chances(start)[-1]
                if branch is not None or reached * chance > bar:
                    yield reached * chance, start

    def _least_likely(self) -> tuple[float, int]:
        """Return the chance that the least likely branch had when it began, and its start."""
        reached, start = min(
            ((reached, at) for reached, at in self._reached() if at in self.branches),
            key=lambda site: site[0] * self.branches[site[1]].chances[-1],
        )
        return reached * self._risks[start] * self._hit(), start

    def _reached(self) -> Iterator[tuple[float, int]]:
        """Yield each position, in order, with the chance that the cloud agrees up to it."""
        reached = 1.0
        for position in sorted(self._risks):
            yield reached, position
            reached *= 1.0 - self._risks[position]

    def _proposed(self, position: int) -> Proposal:
        proposal = self._proposal(position)
        assert proposal is not None, "a provisional token was proposed"
        return proposal

    def _goes_on(self, token_id: int) -> bool:
        return token_id not in self._eos_token_ids

    def _drop(self, start: int) -> None:
        self._free.append(self.branches.pop(start).row)

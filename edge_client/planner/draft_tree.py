"""What the device has drafted and the cloud has not judged: the text's proposals, and branches beside them.

A branch begins where the cloud may override, with the token that came second there. If the cloud's override is that
token, the branch becomes the text, and nothing has to be drafted again.
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
    """A continuation that begins with `first` at position `start`, and the proposals made behind it.

    Its last proposal has not been fed to the model yet, as the text's last token has not.
    """

    row: int
    start: int
    first: int
    chances: list[float]  # that the cloud, if it agrees up to `start`, writes so much of it: `first`, and then each
    proposals: list[Proposal] = field(default_factory=list)

    @property
    def unread(self) -> int:
        """The token to feed next."""
        return self.proposals[-1].token_id if self.proposals else self.first

    def agreed(self, text: Sequence[int]) -> int:
        """How many of the proposals a text that holds `first` goes on with."""
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
        """Have `rows` for branches, numbered from 1, which end with the text at `limit` or with end-of-text.

        `proposal` gives the text's provisional proposal at a position, such as `DeviceSession.proposal`. `risk` makes a
        chance of a signal's risk. `hit` is the chance that an override is the runner-up.
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
        """The text goes on with a proposal."""
        self._risks[position] = self._risk(self._proposed(position).signal.risk)

    def proposal(self, position: int) -> Proposal | None:
        """What was proposed at a position of the text that is not settled."""
        return self._proposal(position) if position in self._risks else None

    def risk(self, position: int) -> float:
        """The chance of an override there; 0 where nothing was proposed."""
        return self._risks.get(position, 0.0)

    @property
    def free_rows(self) -> int:
        """Branches that can begin before another one has to give way."""
        return len(self._free)

    def chances(self, start: int) -> Sequence[float]:
        """The chance of each token of the branch, planted or not, that begins there, if the cloud agrees up to it."""
        branch = self.branches.get(start)
        return branch.chances if branch is not None else (self._risks[start] * self._hit(),)

    def branch_tokens(self, start: int, end: int, sprouts: Iterable[tuple[int, int]]) -> tuple[BranchToken, ...]:
        """Return the branch tokens next to a span [start, end), with absolute indices.

        Each sprout is the position where a branch begins, and how many tokens of it are wanted: of those that are
        there, the runner-up and the proposals behind it, so many are given, none at or past the limit, nor an
        end-of-text token, which nothing follows. A branch that begins where the span has no proposal is left out.
        """
        tokens: list[BranchToken] = []
        for position, wanted in sprouts:
            if not start <= position < end or position not in self._risks:
                continue
            branch = self.branches.get(position)
            behind = branch.proposals if branch is not None else ()
            token_ids = [self._proposed(position).runner_up, *(proposal.token_id for proposal in behind)]
            parent = position - 1
            for token_id in takewhile(self._goes_on, token_ids[: min(wanted, self._limit - position)]):
                tokens.append(BranchToken(parent, token_id))
                parent = end + len(tokens) - 1
        return tuple(tokens)

    def settle(self, final: int) -> None:
        """Positions below `final` are judged."""
        self._risks = {position: risk for position, risk in self._risks.items() if position >= final}
        for start in [start for start in self.branches if start < final]:
            self._drop(start)

    def cut(self, length: int) -> None:
        """The text's proposals from `length` on are void; so are branches that begin behind it."""
        self._risks = {position: risk for position, risk in self._risks.items() if position < length}
        for start in [start for start in self.branches if start >= length]:
            self._drop(start)

    def take(self, position: int, token_id: int) -> Branch | None:
        """The branch that the cloud's token at a position makes the text; all others are void."""
        branch = self.branches.get(position)
        if branch is not None and branch.first != token_id:
            branch = None
        for start in list(self.branches):
            self._drop(start)
        return branch

    def grow(self, start: int, proposal: Proposal) -> None:
        """A branch goes on with a proposal."""
        branch = self.branches[start]
        branch.proposals.append(proposal)
        branch.chances.append(branch.chances[-1] * (1.0 - self._risk(proposal.signal.risk)))

    def plant(self, start: int) -> Branch:
        """Begin a branch; if no row is free, the least likely one gives way."""
        if not self._free:
            self._drop(self._least_likely()[1])
        branch = Branch(self._free.pop(), start, self._proposed(start).runner_up, [*self.chances(start)])
        self.branches[start] = branch
        return branch

    def sites(self) -> Iterator[tuple[float, int]]:
        """The chance of each branch that could be drafted on, planted or not, with the position where it begins.

        If no row is free, only branches likelier than the one that would give way was when it began can begin: else
        two would take turns for ever, as each becomes less likely with every token.
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
        """How likely the branch that would give way was when it began, and where that was."""
        reached, start = min(
            ((reached, at) for reached, at in self._reached() if at in self.branches),
            key=lambda site: site[0] * self.branches[site[1]].chances[-1],
        )
        return reached * self._risks[start] * self._hit(), start

    def _reached(self) -> Iterator[tuple[float, int]]:
        """The chance that the cloud agrees up to each position, in order."""
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

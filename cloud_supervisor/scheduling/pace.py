"""The time of a forward, learned from the forwards before it.

A forward reads the weights once, multiplies them with each token fed, and lets each token see those before it:

    seconds = fixed + per_token * tokens + per_pair * pairs,    pairs: tokens fed, each times the tokens it sees

The three are at least 0 and fit recent forwards with least squares. Older ones count less, because a machine's speed
changes with its other work. Piece sizes by time are those of Sarathi-Serve (Agrawal et al., OSDI 2024), which derives
its budget of tokens from the latency that the others may see.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import numpy.typing as npt

from cloud_supervisor.scheduling.batch import Chunk

_MEMORY = 0.95  # what a forward's weight is multiplied by when the next one is noted
_MOST_SURPRISE = 3.0  # a forward that takes this many times as long as expected, or more, counts as this much
_LEAST_SPREAD = 1e-3  # variance of the tokens of forwards over their squared mean, which separates costs
_TERMS = (1, 2, 0)  # what explains most comes first
_SUBSETS = [list(terms) for size in (1, 2, 3) for terms in combinations(_TERMS, size)]
_BETTER = 1e-6  # relative gain by which more terms, or later ones, are preferred
_SINGULAR = 1e-9  # a term that keeps this share of its square next to others is no term of its own
_PAIRS = 1000.0  # keeps the three terms of similar size


class Pace:
    """The cost of a token in a forward, by the length of the text before it."""

    def __init__(self) -> None:
        self._products = np.zeros((3, 3))
        self._targets = np.zeros(3)
        self._fitted: npt.NDArray[np.float64] | None = None  # seconds: fixed, a token, 1000 pairs; fitted when needed
        self._warm = False

    @property
    def known(self) -> bool:
        """A forward was noted that took any time."""
        return bool(self._targets.any())

    @property
    def untried_tokens(self) -> int:
        """Twice the tokens of recent forwards if all were of about one size: a larger one shows more. Otherwise 0."""
        weight, total, squares = self._products[0, 0], self._products[0, 1], self._products[1, 1]
        mean = total / weight if weight else 0.0
        return 0 if not mean or squares / weight >= (1 + _LEAST_SPREAD) * mean**2 else int(2 * mean)

    def note(self, chunks: Iterable[Chunk], elapsed_s: float) -> None:
        """Learn from a forward. The first one warms the machine up, and a stall is no cost of its tokens."""
        if not self._warm:
            self._warm = True
            return
        sizes = [(chunk.tokens, chunk.start) for chunk in chunks]
        terms = np.array([1.0, sum(tokens for tokens, _ in sizes), sum(_pairs(*size) for size in sizes) / _PAIRS])
        if self.known:
            elapsed_s = min(elapsed_s, _MOST_SURPRISE * float(terms @ self._costs))
        self._products = _MEMORY * self._products + np.outer(terms, terms)
        self._targets = _MEMORY * self._targets + terms * elapsed_s
        self._fitted = None

    def seconds(self, tokens: int, start: int) -> float:
        """Return the time that a forward takes longer for a text's `tokens` after its first `start` ones."""
        return float(self._costs[1] * tokens + self._costs[2] * _pairs(tokens, start) / _PAIRS)

    @property
    def _costs(self) -> npt.NDArray[np.float64]:
        if self._fitted is None:
            self._fitted = _fit(self._products, self._targets)
        return self._fitted

    def tokens_within(self, seconds: float, start: int, most: int) -> int:
        """Return how many tokens after the first `start` ones take at most `seconds`; up to `most`."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.seconds(middle, start) <= seconds else (low, middle - 1)
        return low


def _pairs(tokens: int, start: int) -> float:
    return tokens * (start + (tokens + 1) / 2)


def _fit(products: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the costs [3], none below 0, with the least squared error: those of the best set of terms."""
    left, right = products.tolist(), targets.tolist()  # numpy would take ten times as long for so few numbers
    best, least = np.zeros(3), 0.0
    for terms in _SUBSETS:
        costs = _solved(left, right, terms)
        if costs is None or min(costs) < 0:
            continue
        error = -sum(cost * right[term] for cost, term in zip(costs, terms, strict=True))  # up to what all share
        if error < least - _BETTER * abs(least):
            best, least = np.zeros(3), error
            best[terms] = costs
    return best


def _solved(left: list[list[float]], right: list[float], terms: list[int]) -> list[float] | None:
    """Return the costs of some terms by the normal equations; None if fewer terms explain as much."""
    rows = [[*(left[term][other] for other in terms), right[term]] for term in terms]
    for place, row in enumerate(rows):
        if row[place] <= _SINGULAR * left[terms[place]][terms[place]]:
            return None
        for below in rows[place + 1 :]:
            factor = below[place] / row[place]
            below[:] = [value - factor * other for value, other in zip(below, row, strict=True)]
    costs: list[float] = []
    for place in reversed(range(len(rows))):
        *_, value = rows[place]
        known = sum(cost * rows[place][-2 - index] for index, cost in enumerate(costs))
        costs.append((value - known) / rows[place][place])
    return costs[::-1]

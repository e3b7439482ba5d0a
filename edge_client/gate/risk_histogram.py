"""A fading histogram of risk: how much of it lies below a threshold."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import NDArray

SKIP_ALL = math.inf  # a threshold that no risk reaches
SKIP_NONE = 0.0  # a threshold that every risk reaches
MEMORY = 600.0  # tokens that the histogram remembers
# Tokens that the held-out ones count as at first (chosen on tuning traces). With more, a first text of another kind
# would end before its own tokens outweigh these.
PRIOR = 60.0
FADING = 1.0 - 1.0 / MEMORY  # weight that an old token keeps when a new one comes
_EDGES = np.linspace(-14.0, 14.0, 141)  # log-odds of risk


class RiskHistogram:
    """The risk of recent tokens by interval of log-odds; old tokens fade."""

    def __init__(self) -> None:
        self._mass: NDArray[np.float64] = np.zeros(len(_EDGES) + 1)  # risk in each interval
        self.tokens = 0.0

    @classmethod
    def of(cls, risks: NDArray[np.float64]) -> Self:
        """Return the histogram of these tokens, [tokens], which together count as at most `PRIOR`."""
        histogram = cls()
        share = min(PRIOR / max(len(risks), 1), 1.0)
        for risk in risks:
            histogram._mass[_interval(risk)] += risk * share
        histogram.tokens = len(risks) * share
        return histogram

    def add(self, risk: float) -> None:
        """Add a token."""
        self._mass *= FADING
        self._mass[_interval(risk)] += risk
        self.tokens = self.tokens * FADING + 1

    @property
    def mass(self) -> float:
        """The risk of all tokens."""
        return float(self._mass.sum())

    def below(self, threshold: float) -> float:
        """Return the risk of the tokens that a threshold skips."""
        place = _log_odds(threshold)
        index = _interval(threshold)
        below = float(self._mass[:index].sum())
        if 0 < index < len(_EDGES):
            below += float(self._mass[index]) * (place - _EDGES[index - 1]) / (_EDGES[index] - _EDGES[index - 1])
        return below

    def threshold(self, mass: float) -> float:
        """Return the threshold that skips this much risk; `SKIP_ALL` if there is no more than that."""
        total = np.cumsum(self._mass)
        if mass >= total[-1] > 0:
            return SKIP_ALL
        index = int(np.searchsorted(total, mass, side="right"))
        if index in (0, len(total)):  # all known tokens are nearly certain: ask about any other
            return _risk(float(_EDGES[0]))
        before = float(total[index - 1])
        share = (mass - before) / (float(total[index]) - before)
        return _risk(float(_EDGES[index - 1] + share * (_EDGES[index] - _EDGES[index - 1])))


def _interval(risk: float) -> int:
    return int(np.searchsorted(_EDGES, _log_odds(risk)))


def _log_odds(risk: float) -> float:
    risk = min(max(risk, 1e-9), 1.0 - 1e-9)
    return min(max(math.log(risk / (1.0 - risk)), float(_EDGES[0])), float(_EDGES[-1]))


def _risk(log_odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-log_odds))

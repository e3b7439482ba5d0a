"""The number of beams after a layer, W_L: fixed, or by the paper's law. Pure.

A width may depend on the two laws of a layer, but not on the draws: then the rule stays exact. The paper's law takes
the widest that is accepted with enough probability. The code that was published with the paper subtracts q twice
between two draws. The recursion here follows its text, and agrees with simulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from chaperone_common.beams.rule import Float64s, residual


class Width(Protocol):
    """A rule for the number of beams after a layer."""

    @property
    def most(self) -> int:
        """The number of beams where no draw can be accepted."""

    def width(self, p_beam: Float64s, q_beam: Float64s, draws: int) -> int:
        """Return W_L, from 1 to `most`, for a layer with a number of the small model's draws from `q_beam`."""


@dataclass(frozen=True, slots=True)
class FixedWidth:
    """The same width in all layers."""

    most: int

    def width(self, p_beam: Float64s, q_beam: Float64s, draws: int) -> int:
        return self.most


@dataclass(frozen=True, slots=True)
class WidthLaw:
    """W_L = max(W_min, the largest K with Pr[at least K draws are accepted] >= t)."""

    threshold: float = 0.9  # t
    least: int = 1  # W_min
    most: int = 4  # beams that the caller wants at the end of the text

    def width(self, p_beam: Float64s, q_beam: Float64s, draws: int) -> int:
        chances = acceptances(acceptance_rates(p_beam, q_beam, draws))
        likely = int(np.count_nonzero(chances[1:] >= self.threshold))  # they fall with K
        return min(max(self.least, likely), self.most)


def acceptance_rates(p_beam: Float64s, q_beam: Float64s, draws: int) -> Float64s:
    """Return a [draws]: a_j is the probability that a draw stands after j - 1 rejections in succession.

    a_j = sum min(p_j, q), with p_1 = p_beam and p_(j + 1) = norm(max(p_j - q, 0)).
    """
    rates = np.empty(draws, np.float64)
    p_left = p_beam
    for number in range(draws):
        rates[number] = np.minimum(p_left, q_beam).sum()
        p_left = residual(p_left, q_beam)
    return np.minimum(rates, 1.0)


def acceptances(rates: Float64s) -> Float64s:
    """Return [draws + 1]: entry K is the probability that at least K of all draws are accepted.

    P(m, K) = sum over i of a_i prod over j < i of (1 - a_j), times P(m - i, K - 1): the first that stands is draw i,
    and then the test begins again with p_beam. P(m, 0) = 1, and P(m, K) = 0 for K > m.
    """
    draws = len(rates)
    first = rates * np.cumprod(np.concatenate([[1.0], 1.0 - rates[:-1]])) if draws else rates
    chances = np.ones(draws + 1, np.float64)  # P(m, K) for K = 0, by m
    found = [1.0]
    for _ in range(draws):
        chances = np.array([first[:m] @ chances[m - 1 :: -1][:m] if m else 0.0 for m in range(draws + 1)])
        found.append(float(chances[draws]))
    return np.array(found)

"""Random decisions of beams, as a function of the seed and the position. Pure.

The noise is that of `chaperone_common.sampling`, in a domain of its own. A position is decided once by the large model,
so each of its uniforms is used once, and the same seed gives the same text.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chaperone_common.beams.rule import Float64s
from chaperone_common.sampling import noise

BEAM_DOMAIN = 1  # decisions of the large model
FOREST_DOMAIN = 2  # draws of the small model
_STANDS, _OUTCOMES, _OTHERS = 0, 1, 2  # streams
_BLOCK = 32  # uniforms that are made at once; a layer rarely needs more


class PhiloxChance:
    """A `Chance` for one position: `stands` and `outcome` have a sequence of uniforms each."""

    def __init__(self, seed: int, position: int, *, domain: int = BEAM_DOMAIN) -> None:
        self._stands = _uniforms(seed, position, _STANDS, domain)
        self._outcomes = _uniforms(seed, position, _OUTCOMES, domain)

    def stands(self, probability: float) -> bool:
        return next(self._stands) < probability

    def outcome(self, law: Float64s) -> int:
        return outcome_at(law, next(self._outcomes))


def outcome_at(law: Float64s, u: float) -> int:
    """Return the outcome of a law, which need not be normalised, at u in (0, 1): the inverse of its cumulative sum."""
    sums = np.cumsum(law)
    found = int(np.searchsorted(sums, u * sums[-1], side="right"))
    return found if found < len(law) else int(np.flatnonzero(law)[-1])  # u is rounded, and so is its product


def uniforms_of_others(seed: int, position: int, node: int, count: int) -> Float64s:
    """Return the uniforms [count] with which the large model draws tokens that no row lists, after one node."""
    return noise(seed, position, count, stream=_OTHERS + node, domain=BEAM_DOMAIN)


def _uniforms(seed: int, position: int, stream: int, domain: int) -> Iterator[float]:
    count = _BLOCK
    yielded = 0
    while True:
        for u in noise(seed, position, count, stream=stream, domain=domain)[yielded:]:
            yield float(u)
        yielded, count = count, 2 * count

"""Tokens of known fate, and the thresholds that would have kept a promise on them: conformal risk control.

Angelopoulos et al., "Conformal Risk Control" (arXiv 2208.02814): a loss L(lambda) of one token, at most B and monotone
in lambda, is kept at or below alpha in expectation on the next, exchangeable token by the lambda that is furthest on
the losing side with (sum of L_i(lambda) + B) / (n + 1) <= alpha. Here lambda is the threshold: tokens of less risk are
skipped. Tokens of one text are not exchangeable with each other, and those of another task not at all: so a threshold
made here is only where `control` begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chaperone_common.errors import ConfigError

ALL = math.inf  # a threshold that no risk reaches: everything is skipped
NONE = 0.0  # one that every risk reaches: nothing is


@dataclass(frozen=True, slots=True)
class Calibration:
    """Risks of tokens that the gate was not trained on, ascending, and whether the cloud chose another one there."""

    risks: NDArray[np.float64]  # [tokens] in [0, 1]
    overridden: NDArray[np.bool_]  # [tokens]

    @classmethod
    def of(cls, risks: Sequence[float], overridden: Sequence[bool]) -> Calibration:
        """Sort tokens by risk; raises ConfigError unless there are as many risks as fates."""
        if len(risks) != len(overridden):
            raise ConfigError(f"calibration: {len(risks)} risks of {len(overridden)} tokens; calibrate again")
        array = np.asarray(risks, np.float64)
        if not ((array >= 0) & (array <= 1)).all():
            raise ConfigError("calibration: a risk is outside [0, 1]; calibrate again")
        order = np.argsort(array, kind="stable")
        return cls(array[order], np.asarray(overridden, np.bool_)[order])

    def for_catch(self, catch: float) -> float:
        """The highest threshold with E[deviations - (1 - catch) overrides] <= 0.

        The loss of a token is `catch` if it is skipped and deviates, `catch - 1` if it is asked about and overridden,
        else 0. So it is bounded by `catch`.
        """
        missed = self._missed()
        losses = missed - (1 - catch) * float(missed[-1])  # summed, if the first k tokens are skipped: [tokens + 1]
        return self._highest(losses + catch <= 0)

    def for_deviation(self, max_deviation: float) -> float:
        """The highest threshold with E[deviations] <= `max_deviation`, for one token; the loss is bounded by 1."""
        return self._highest((self._missed() + 1) / (len(self.risks) + 1) <= max_deviation)

    def _missed(self) -> NDArray[np.int64]:
        """Deviations if the k tokens of least risk are skipped, for k from 0: [tokens + 1]."""
        return np.concatenate(([0], np.cumsum(self.overridden)))

    def _highest(self, kept: NDArray[np.bool_]) -> float:
        """The threshold that skips as many tokens as keeps the promise; tokens of one risk go together."""
        if not kept.any():
            return NONE
        skipped = int(np.flatnonzero(kept)[-1])
        return ALL if skipped == len(self.risks) else float(self.risks[skipped])

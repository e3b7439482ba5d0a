"""Held-out tokens, and the thresholds that would have kept a promise on them: conformal risk control.

Angelopoulos et al., "Conformal Risk Control" (arXiv 2208.02814): let a loss L(lambda) of one token be monotone in
lambda and at most B. The expected loss of the next, exchangeable token is at most alpha for the last lambda with

    (sum of L_i(lambda) + B) / (n + 1) <= alpha

Here lambda is the threshold: the gate skips tokens of less risk. The tokens of one text are not exchangeable with each
other, nor with those of another task. A threshold from here is therefore only the start of `control`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chaperone_common.errors import ConfigError
from edge_client.gate.risk_histogram import SKIP_ALL, SKIP_NONE


@dataclass(frozen=True, slots=True)
class HeldOutRisks:
    """Tokens that the gate was not fitted to, by rising risk."""

    risks: NDArray[np.float64]  # [tokens] in [0, 1]
    overridden: NDArray[np.bool_]  # [tokens], True if the cloud chose another token

    @classmethod
    def of(cls, risks: Sequence[float], overridden: Sequence[bool]) -> HeldOutRisks:
        """Sort tokens by risk. Raises ConfigError unless each has a risk in [0, 1] and a flag."""
        if len(risks) != len(overridden):
            raise ConfigError(f"calibration: {len(risks)} risks of {len(overridden)} tokens; calibrate again")
        array = np.asarray(risks, np.float64)
        if not ((array >= 0) & (array <= 1)).all():
            raise ConfigError("calibration: a risk is outside [0, 1]; calibrate again")
        order = np.argsort(array, kind="stable")
        return cls(array[order], np.asarray(overridden, np.bool_)[order])

    def for_catch(self, catch: float) -> float:
        """Return the highest threshold with E[deviations - (1 - catch) overrides] <= 0.

        The loss of a token is `catch` if it is skipped and deviates, `catch - 1` if it fires and is overridden, else 0.
        It is at most `catch`.
        """
        missed = self._missed()
        losses = missed - (1 - catch) * float(missed[-1])  # [tokens + 1], summed, if the first k tokens are skipped
        return self._highest(losses + catch <= 0)

    def for_deviation(self, max_deviation: float) -> float:
        """Return the highest threshold with E[deviations] <= `max_deviation` for one token; its loss is at most 1."""
        return self._highest((self._missed() + 1) / (len(self.risks) + 1) <= max_deviation)

    def _missed(self) -> NDArray[np.int64]:
        """Return the deviations if the k tokens of least risk are skipped, for k from 0: [tokens + 1]."""
        return np.concatenate(([0], np.cumsum(self.overridden)))

    def _highest(self, kept: NDArray[np.bool_]) -> float:
        """Return the threshold that skips most tokens of those that keep the promise; equal risks go together."""
        if not kept.any():
            return SKIP_NONE
        skipped = int(np.flatnonzero(kept)[-1])
        return SKIP_ALL if skipped == len(self.risks) else float(self.risks[skipped])

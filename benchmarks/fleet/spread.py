"""The distribution of many values in little memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_LEAST, _MOST = 1e-3, 1e9
_RATIO = 1.005  # of the ends of a bin: percentiles are within 0.25%
_BINS = math.ceil(math.log(_MOST / _LEAST) / math.log(_RATIO)) + 1


class Spread:
    """Counts of positive values in bins of equal ratio. Smaller values than 0.001 count as that."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._sum = 0.0

    def __len__(self) -> int:
        """Return the number of values."""
        return int(self._counts.sum())

    @property
    def mean(self) -> float:
        """The exact mean; 0 without values."""
        return self._sum / len(self) if len(self) else 0.0

    def add(self, values: Sequence[float]) -> None:
        """Count values."""
        found = np.asarray(values, np.float64)
        bins = np.log(np.clip(found, _LEAST, _MOST) / _LEAST) / math.log(_RATIO)
        self._counts += np.bincount(bins.astype(np.int64), minlength=_BINS)
        self._sum += float(found.sum())

    def percentiles(self, shares: Sequence[float]) -> dict[str, float]:
        """Return `p50` and so on, within 0.25%; empty without values."""
        if not len(self):
            return {}
        reached = np.cumsum(self._counts)
        found: dict[str, float] = {}
        for share in shares:
            index = int(np.searchsorted(reached, share / 100 * reached[-1]))
            found[f"p{share:g}"] = 0.0 if index == 0 else round(_LEAST * _RATIO ** (index + 0.5), 3)
        return found

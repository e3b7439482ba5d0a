"""Statistics of results."""

from __future__ import annotations

from collections.abc import Callable
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, bootstrap

DRAWS = 2000
LEVEL = 0.95
SEED = 0  # the same results give the same interval

Indices = NDArray[np.int64]


def interval(
    units: int, statistic: Callable[[Indices], float | None], *, draws: int = DRAWS, digits: int = 4
) -> list[float] | None:
    """Return the bootstrap percentile interval of 95% of a statistic over resampled units, such as prompts.

    `statistic` takes the indices of the drawn units, [units]. It may return None for a draw without a value. All
    statistics over the same number of units see the same draws, so a statistic may compare strategies pair by pair.

    Return None for fewer than two units. Return None, too, if more than 2.5% of the draws have no value: the interval
    of the others would not be one of 95%.
    """
    if units < 2:
        return None

    def value(drawn: Indices) -> float:
        found = statistic(drawn)
        return np.nan if found is None else found

    with catch_warnings():
        simplefilter("ignore", DegenerateDataWarning)  # draws without a value, which are left out below
        drawn = bootstrap(
            (np.arange(units),),
            value,
            n_resamples=draws,
            vectorized=False,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(SEED),
        ).bootstrap_distribution
    known = drawn[~np.isnan(drawn)]
    outside = (1 - LEVEL) / 2
    if len(known) < (1 - outside) * draws:
        return None
    return [round(float(edge), digits) for edge in np.quantile(known, (outside, 1 - outside))]


def rounded(value: float | None, digits: int = 3) -> float | None:
    """Round a number for a file that people read; keep None."""
    return None if value is None else round(value, digits)

"""Loss of `exact` in a run against the best fixed strategy, chosen in hindsight for each class of prompts.

The measure is the best strategy's median time over that of `exact`, over the same prompts and repeats: 1 is as good as
the best, under 1 is a loss. The time is that of the whole request in a cold run, else that from the warm start. The 95%
interval is a bootstrap over prompts x repeats, which are drawn together for all strategies. Each draw chooses its own
best strategy.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kit.statistics import Indices, interval
from benchmarks.measured.summary import ALL, Row

EXACT = "exact"
LIMIT = 0.97  # a loss is certain if the upper end of the interval is under it

# By strategy, milliseconds of the same generations (prompts x repeats).
Times = Mapping[str, Sequence[float] | NDArray[np.float64]]


def measured_regret(rows: Sequence[Row], fixed: Collection[str]) -> dict[str, Any] | None:
    """Return the regret by category; None if `exact` or every one of the `fixed` strategies is missing."""
    categories = dict.fromkeys([*(row["category"] for row in rows), ALL])
    found = {
        category: _entry(times)
        for category in categories
        if (times := _times([row for row in rows if category in (row["category"], ALL)], fixed))
    }
    return {"limit": LIMIT, "categories": found} if found else None


def ratio(times: Times) -> tuple[float, str]:
    """Return the best fixed strategy's median time over that of `exact`, and the name of that strategy."""
    medians = {name: float(np.median(values)) for name, values in times.items()}
    best = min((name for name in medians if name != EXACT), key=lambda name: medians[name])
    return medians[best] / medians[EXACT], best


def ratio_interval(times: Times) -> list[float] | None:
    """Return the 95% interval of `ratio` over generations; None for fewer than two generations a strategy."""
    columns = {name: np.array(values) for name, values in times.items()}

    def ratio_of(drawn: Indices) -> float:
        return ratio({name: values[drawn] for name, values in columns.items()})[0]

    return interval(len(times[EXACT]), ratio_of)


def _times(rows: Sequence[Row], fixed: Collection[str]) -> dict[str, list[float]] | None:
    """Return the times of generations that all strategies finished; None if there are none."""
    by_strategy: dict[str, dict[tuple[str, int], float]] = {}
    for row in rows:
        spent = _time_ms(row)
        if row["strategy"] in {EXACT, *fixed} and row["error"] is None and spent:
            by_strategy.setdefault(row["strategy"], {})[row["id"], row["repeat"]] = spent
    kinds = {row["category"] for row in rows}
    met = {name: {row["category"] for row in rows if row["strategy"] == name} for name in by_strategy}
    by_strategy = {
        name: found for name, found in by_strategy.items() if met[name] == kinds
    }  # a strategy of one kind of prompt alone is no rival
    if EXACT not in by_strategy or len(by_strategy) < 2:
        return None
    common = [key for key in by_strategy[EXACT] if all(key in found for found in by_strategy.values())]
    return {name: [found[key] for key in common] for name, found in by_strategy.items()} if common else None


def _time_ms(row: Row) -> float | None:
    spent: float | None = row["cold_total_ms"] or row["stats"]["decode_ms"]
    return spent


def _entry(times: Times) -> dict[str, Any]:
    value, best = ratio(times)
    within = ratio_interval(times)
    return {
        "best": best,
        "ratio": round(value, 4),
        "ratio_95": within,
        "upper_bound_under_limit": within is not None and within[1] < LIMIT,
        "generations": len(times[EXACT]),
        "median_ms": {name: round(statistics.median(values), 1) for name, values in times.items()},
    }

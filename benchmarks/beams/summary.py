"""Figures of the study: speed, likelihood, right answers, energy and bytes of each way, next to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kit.statistics import Indices, interval, rounded

Row = Mapping[str, Any]
Floats = NDArray[np.float64]


def summarise(rows: Mapping[str, Sequence[Row]], baseline: str) -> dict[str, Any]:
    """Return the figures of one suite over one link, by way; all ways have the same prompts in the same order."""
    return {way: _figures(found, rows[baseline]) for way, found in rows.items()}


def _figures(rows: Sequence[Row], before: Sequence[Row]) -> dict[str, Any]:
    speed, own = _speeds(rows), _speeds(before)
    likely, likely_before = _means(rows), _means(before)
    energy, energy_before = _column(rows, "energy_j"), _column(before, "energy_j")
    tokens, tokens_before = _tokens(rows), _tokens(before)

    def median_ratio(drawn: Indices) -> float:
        return float(np.median(speed[drawn] / own[drawn]))

    def gain(drawn: Indices) -> float:
        return float((likely[drawn] - likely_before[drawn]).mean())

    def saving(drawn: Indices) -> float:
        used = energy[drawn].sum() / tokens[drawn].sum()
        return float(energy_before[drawn].sum() / tokens_before[drawn].sum() / used)

    everything = np.arange(len(rows))
    up = [row["bytes_up"] / row["round_trips"] for row in rows if row["round_trips"]]
    found: dict[str, Any] = {
        "texts": len(rows),
        "tokens": int(tokens.sum()),
        "tokens_per_s": rounded(float(np.median(speed)), 3),
        "speed_over_baseline": rounded(median_ratio(everything), 3),
        "speed_over_baseline_95": interval(len(rows), median_ratio, digits=3),
        "logprob_per_token": rounded(float(likely.mean()), 4),
        "logprob_gain": rounded(gain(everything), 4),
        "logprob_gain_95": interval(len(rows), gain),
        "joules_per_token": rounded(float(energy.sum() / tokens.sum()), 3),
        "energy_saving": rounded(saving(everything), 3),
        "energy_saving_95": interval(len(rows), saving, digits=3),
        "bytes_up_per_request": rounded(float(np.mean(up)), 0) if up else None,
        "requests_per_token": rounded(float(_column(rows, "round_trips").sum() / tokens.sum()), 3),
        "verified_share": rounded(float(_column(rows, "verified_tokens").sum() / tokens.sum()), 3),
    }
    if all(row["right"] is not None for row in (*rows, *before)):
        found |= _right(rows, before)
    return found


def _right(rows: Sequence[Row], before: Sequence[Row]) -> dict[str, Any]:
    right, right_before = _column(rows, "right"), _column(before, "right")

    def more(drawn: Indices) -> float:
        return float((right[drawn] - right_before[drawn]).mean())

    return {
        "right": int(right.sum()),
        "right_gain": rounded(more(np.arange(len(rows))), 4),
        "right_gain_95": interval(len(rows), more),
    }


def _column(rows: Sequence[Row], name: str) -> Floats:
    return np.array([float(row[name]) for row in rows])


def _tokens(rows: Sequence[Row]) -> Floats:
    return np.array([float(len(row["token_ids"])) for row in rows])


def _speeds(rows: Sequence[Row]) -> Floats:
    return _tokens(rows) / _column(rows, "seconds")


def _means(rows: Sequence[Row]) -> Floats:
    return _column(rows, "logprob") / _tokens(rows)

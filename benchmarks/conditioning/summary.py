"""Figures of the study: agreement by suite, way and position, and how many disagreements each variant leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.conditioning.texts import Answered
from benchmarks.kit.statistics import Indices, interval, rounded

BOUNDS = (0, 16, 32, 64, 128, 256)  # of positions in an answer; the last stretch is open

Key = tuple[str, str]  # a prompt's id, and the way that it was answered in


def summarise(texts: Sequence[Answered], agreed: Mapping[str, Mapping[Key, NDArray[np.bool_]]]) -> Any:
    """Return the figures of each suite, way and variant.

    `agreed` has, for each variant, what `reading.agreement` returned for each (id, way). The first variant is the one
    that the others are compared with: `disagreements_over_first` is below 1 where a variant disagrees less.
    """
    first = next(iter(agreed))
    summary: dict[str, Any] = {}
    for suite in dict.fromkeys(text.suite for text in texts):
        for way in dict.fromkeys(text.way for text in texts):
            keys = [(text.id, text.way) for text in texts if text.suite == suite and text.way == way]
            keys = [key for key in keys if len(agreed[first][key])]
            rows = {name: [found[key] for key in keys] for name, found in agreed.items()}
            summary.setdefault(suite, {})[way] = {name: _row(rows[name], rows[first]) for name in rows}
    return summary


def gain(own: Mapping[Key, NDArray[np.bool_]], none: Mapping[Key, NDArray[np.bool_]]) -> float:
    """Return how many overrides the prompts' own encodings save for each token: `conditioning_gain` of a pair.

    Negative if they cost some. Both have, for each (id, way), what `reading.agreement` returned.
    """
    saved = sum(int(own[key].sum()) - int(none[key].sum()) for key in own)
    return saved / sum(len(agreed) for agreed in own.values())


def _row(found: Sequence[NDArray[np.bool_]], first: Sequence[NDArray[np.bool_]]) -> dict[str, Any]:
    lengths = np.array([len(each) for each in found])
    missed, before = (np.array([(~each).sum() for each in rows]) for rows in (found, first))

    def share(drawn: Indices) -> float | None:
        return 1 - float(missed[drawn].sum() / lengths[drawn].sum()) if lengths[drawn].sum() else None

    def ratio(drawn: Indices) -> float | None:
        return float(missed[drawn].sum() / before[drawn].sum()) if before[drawn].sum() else None

    everything = np.arange(len(found))
    return {
        "prompts": len(found),
        "tokens": int(lengths.sum()),
        "agreement": rounded(share(everything), 4),
        "agreement_95": interval(len(found), share),
        "disagreements_over_first": rounded(ratio(everything), 3),
        "disagreements_over_first_95": interval(len(found), ratio, digits=3),
        "agreement_by_position": by_position(found),
    }


def by_position(found: Sequence[NDArray[np.bool_]]) -> dict[str, float | None]:
    """Return the agreement in each stretch of the answers; None where no answer is as long."""
    shares: dict[str, float | None] = {}
    for start, end in zip(BOUNDS, (*BOUNDS[1:], None), strict=True):
        tokens = np.concatenate([each[start:end] for each in found]) if found else np.empty(0, np.bool_)
        shares[f"{start}-{'' if end is None else end - 1}"] = rounded(float(tokens.mean()), 4) if len(tokens) else None
    return shares

"""Bootstrap intervals: their draws, their coverage, and cases without an interval."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.kit.statistics import Indices, interval, rounded

VALUES = np.array([1.0, 2.0, 3.0, 4.0, 5.0])


def median_interval(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    found = interval(len(values), lambda drawn: float(np.median(values[drawn])))
    assert found is not None
    return found


def test_an_interval_holds_the_median_and_narrows_with_more_values() -> None:
    few, many = median_interval(VALUES), median_interval(np.tile(VALUES, 20))
    assert few[0] <= 3.0 <= few[1]
    assert few[1] - few[0] > many[1] - many[0]
    assert median_interval(VALUES) == few, "the same values give the same interval"


def test_an_interval_of_a_mean_matches_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(10.0, 2.0, size=400)
    found = interval(len(values), lambda drawn: float(values[drawn].mean()))
    assert found is not None
    half = 1.96 * values.std() / 20
    assert found == pytest.approx([values.mean() - half, values.mean() + half], abs=0.02)


def test_all_statistics_see_the_same_draws() -> None:
    seen: list[list[list[int]]] = [[], []]

    def note(place: int, drawn: Indices) -> float:
        seen[place].append(drawn.tolist())
        return 0.0

    interval(4, lambda drawn: note(0, drawn), draws=20)
    interval(4, lambda drawn: note(1, drawn), draws=20)
    assert seen[0] == seen[1]
    assert {index for drawn in seen[0] for index in drawn} == {0, 1, 2, 3}


def test_fewer_than_two_units_have_no_interval() -> None:
    assert interval(1, lambda drawn: 1.0) is None
    assert interval(0, lambda drawn: 1.0) is None


def test_a_few_draws_may_have_no_value() -> None:
    rare = interval(8, lambda drawn: None if len(set(drawn.tolist())) <= 2 else 1.0)
    assert rare == [1.0, 1.0]
    assert interval(8, lambda drawn: None if 0 not in drawn else 1.0) is None


def test_numbers_are_rounded_and_none_stays() -> None:
    assert rounded(1.23456) == 1.235
    assert rounded(None) is None

"""Curves through a few measured points."""

from __future__ import annotations

import pytest

from benchmarks.simulation.costs import CloudCosts, Curve, DraftCosts
from benchmarks.virtual.simulate import curve


@pytest.mark.parametrize(("x", "y"), [(0, 10), (1, 10), (2, 10), (3, 15), (4, 20), (6, 40), (8, 60), (10, 80)])
def test_a_curve_is_level_then_linear_then_extrapolated(x: float, y: float) -> None:
    assert Curve.of((1, 10), (2, 10), (4, 20), (8, 60)).at(x) == pytest.approx(y)


def test_one_point_is_a_constant() -> None:
    assert [curve("50").at(tokens) for tokens in (1, 9)] == [50, 50]


def test_the_defaults_meet_their_points() -> None:
    assert [CloudCosts().read_ms.at(tokens) for tokens in (1, 4, 32)] == [310, 323, 747]
    assert [DraftCosts(step_ms=10).rows_ms(rows) for rows in (1, 2, 4)] == [10, 12.5, 19.5]
    assert DraftCosts(step_ms=10).chunk_ms(1) == 10


def test_a_curve_is_read_from_text() -> None:
    assert curve("1:310,16:500").points == ((1, 310), (16, 500))

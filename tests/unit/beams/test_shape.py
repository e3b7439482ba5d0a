"""The shape of forests: by hand, by simulation, and at the ends of the range of costs."""

from __future__ import annotations

import numpy as np
import pytest

from chaperone_common.planning.costs import Costs
from edge_client.beams.shape import Acceptance, ForestPlanner, Limits, Shape, best_shape, layers_gained, round_ms

LIMITS = Limits(width=6, depth=6, texts=64)


def _acceptance(value: float) -> Acceptance:
    found = Acceptance()
    found.judged(round(1000 * value), 1000)
    return found


def test_a_layer_stands_if_enough_draws_are_accepted() -> None:
    found = _acceptance(0.8)
    rng = np.random.default_rng(1)
    accepted = (rng.random((100_000, 4)) < found.value).sum(axis=1)
    assert found.of_layer(3, 4) == pytest.approx((accepted >= 3).mean(), abs=0.01)
    assert found.of_layer(1, 1) == pytest.approx(found.value)


def test_a_round_gains_the_layers_that_stand_and_one_more() -> None:
    assert layers_gained(0.5, 0) == 1
    assert layers_gained(0.5, 2) == 1 + 0.5 + 0.25
    assert layers_gained(1.0, 4) == 5


def test_a_round_takes_the_time_of_its_parts() -> None:
    costs = Costs(draft_ms=20, row_ms=5, rtt_ms=100, read_base_ms=50, read_token_ms=3)
    assert round_ms(costs, 2, Shape(0, 0)) == 100 + 50 + 6
    assert round_ms(costs, 2, Shape(4, 3)) == (20 + 5) + 2 * (20 + 15) + 100 + 50 + 3 * (2 + 12)


def test_far_clouds_get_deep_forests_and_unlike_models_none() -> None:
    near = Costs(rtt_ms=0, read_base_ms=100)
    far = Costs(rtt_ms=200, read_base_ms=100)
    assert (
        best_shape(far, _acceptance(0.95), 2, 50, LIMITS).depth
        > best_shape(near, _acceptance(0.75), 2, 50, LIMITS).depth
    )
    assert best_shape(far, _acceptance(0.02), 4, 50, LIMITS) == Shape(0, 0)
    assert best_shape(Costs(read_base_ms=1, read_token_ms=0.1, rtt_ms=200), _acceptance(0.9), 2, 50, LIMITS).depth == 0


def test_a_doubtful_draft_is_widened() -> None:
    costs = Costs(rtt_ms=200, read_base_ms=100, row_ms=2, read_token_ms=1)
    assert best_shape(costs, _acceptance(0.6), 2, 50, LIMITS).width > 2


@pytest.mark.parametrize("layers_left", [1, 2, 4])
def test_a_forest_stays_below_the_limit_of_the_text(layers_left: int) -> None:
    shape = best_shape(Costs(rtt_ms=300), _acceptance(0.99), 1, layers_left, LIMITS)
    assert shape.depth < layers_left


def test_a_forest_keeps_to_its_limits() -> None:
    for texts in range(4, 40, 5):
        shape = best_shape(Costs(rtt_ms=500), _acceptance(0.9), 3, 50, Limits(5, 4, texts))
        assert shape.width <= 5
        assert shape.depth <= 4
        assert 3 + shape.width * shape.depth <= texts


def test_the_best_shape_is_the_best_of_all_by_simulation() -> None:
    """The expected layers per second of every shape, with layers that stand at random."""
    costs = Costs(draft_ms=15, row_ms=4, rtt_ms=80, read_base_ms=120, read_token_ms=4)
    acceptance = _acceptance(0.85)
    rng = np.random.default_rng(2)
    rates = {}
    for width in range(2, 7):
        for depth in range(1, 7):
            stood = (rng.random((4000, depth, width)) < acceptance.value).sum(axis=2) >= 2
            layers = 1 + np.cumprod(stood, axis=1).sum(axis=1)
            rates[Shape(width, depth)] = layers.mean() / round_ms(costs, 2, Shape(width, depth))
    chosen = best_shape(costs, acceptance, 2, 50, LIMITS)
    assert rates[chosen] >= 0.98 * max(rates.values())


def test_a_forest_is_tried_now_and_then() -> None:
    planner = ForestPlanner(_acceptance(0.02))
    costs = Costs(rtt_ms=100)
    shapes = []
    for _ in range(140):
        shape = planner.shape(costs, 2, 500, LIMITS)
        shapes.append(shape)
        planner.judged(shape, 1, 0, 2 if shape.depth else 0)
    assert shapes.count(Shape(2, 1)) == 2
    assert shapes.count(Shape(0, 0)) == 138


def test_verdicts_without_tests_teach_nothing() -> None:
    found = Acceptance()
    before = found.value
    found.judged(0, 0)
    assert found.value == before
    found.judged(9, 10)
    assert found.value > before

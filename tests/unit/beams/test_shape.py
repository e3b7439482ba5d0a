"""The shape of forests: by hand, by simulation, and at the ends of the range of costs."""

from __future__ import annotations

import numpy as np
import pytest

from chaperone_common.planning.costs import Costs
from edge_client.beams.shape import ForestPlanner, Learned, Limits, Shape, Situation, layers_gained, round_ms
from edge_client.planner import Decision, DraftForest, HandOver

LIMITS = Limits(width=6, depth=6, texts=64)


def _learned(accepted: float, num_beams: int = 2, unlike: float = 1.0) -> Learned:
    found = Learned(num_beams)
    found.accepted.add(1000 * accepted, 1000)
    found.unlike.add(1000 * unlike, 1000)
    return found


def _decide(
    costs: Costs, learned: Learned, left: int = 50, limits: Limits = LIMITS, width: int | None = None
) -> Decision:
    return ForestPlanner(learned).decide(costs, Situation(learned.num_beams, left, limits, width))


def _shape(decision: Decision) -> Shape:
    match decision.action:
        case DraftForest(width, depth):
            return Shape(width, depth)
        case _:
            return Shape(0, 0)


def test_a_layer_stands_if_enough_draws_are_accepted() -> None:
    found = _learned(0.8, num_beams=3)
    rng = np.random.default_rng(1)
    accepted = (rng.random((100_000, 4)) < found.accepted.value).sum(axis=1)
    assert found.stands(4) == pytest.approx((accepted >= 3).mean(), abs=0.01)
    assert found.stands(2) == 0.0


def test_layers_that_fall_together_are_learned_for_their_width() -> None:
    found = _learned(0.7, num_beams=2)
    before = found.stands(4)
    for _ in range(30):
        found.judged(Shape(2, 3), layers=1, accepted=1, tested=2, texts=6)
    assert found.stands(2) < 0.1
    for _ in range(30):
        found.judged(Shape(4, 3), layers=4, accepted=12, tested=12, texts=3)
    assert found.stands(4) > max(before, 0.9)


def test_draws_of_one_text_are_one_text() -> None:
    found = Learned(4)
    for _ in range(40):
        found.judged(Shape(5, 2), layers=3, accepted=8, tested=8, texts=2)
    assert found.texts(5) == pytest.approx(1.0, abs=0.3)
    for _ in range(300):
        found.judged(Shape(5, 2), layers=3, accepted=8, tested=8, texts=10)
    assert found.texts(5) == pytest.approx(5.0, abs=0.3)


def test_a_round_gains_the_layers_that_stand_and_one_more() -> None:
    assert layers_gained(0.5, 0) == 1
    assert layers_gained(0.5, 2) == 1 + 0.5 + 0.25
    assert layers_gained(1.0, 4) == 5


def test_a_round_takes_the_time_of_its_parts() -> None:
    costs = Costs(draft_ms=20, row_ms=5, rtt_ms=100, read_base_ms=50, read_token_ms=3)
    assert round_ms(costs, 2, 0, 0) == 100 + 50 + 6
    assert round_ms(costs, 2, 4, 3) == (20 + 5) + 2 * (20 + 15) + 100 + 50 + 3 * (2 + 12)


def test_far_clouds_get_deep_forests_and_unlike_models_none() -> None:
    near, far = Costs(rtt_ms=0, read_base_ms=100), Costs(rtt_ms=200, read_base_ms=100)
    assert _shape(_decide(far, _learned(0.95))).depth > _shape(_decide(near, _learned(0.75))).depth
    assert isinstance(_decide(far, _learned(0.02, 4)).action, HandOver)
    fast = Costs(read_base_ms=1, read_token_ms=0.1, rtt_ms=200)
    assert isinstance(_decide(fast, _learned(0.9)).action, HandOver)


def test_a_doubtful_draft_is_widened() -> None:
    costs = Costs(rtt_ms=20, read_base_ms=100, row_ms=2, read_token_ms=1)
    assert _shape(_decide(costs, _learned(0.6))).width > 2


def test_texts_that_are_alike_cost_less_and_are_drafted_deeper() -> None:
    costs = Costs(rtt_ms=50, read_base_ms=100, row_ms=15, read_token_ms=10)
    alike, unlike = (_decide(costs, _learned(0.9, 4, unlike=share)) for share in (0.0, 1.0))
    assert _shape(alike).width >= _shape(unlike).width
    assert alike.figures["layers_per_s"] > unlike.figures["layers_per_s"]
    assert alike.figures["alone_per_s"] > unlike.figures["alone_per_s"]


@pytest.mark.parametrize("layers_left", [1, 2, 4])
def test_a_forest_stays_below_the_limit_of_the_text(layers_left: int) -> None:
    decision = _decide(Costs(rtt_ms=300), _learned(0.99, 1), layers_left)
    assert _shape(decision).depth < layers_left
    if layers_left == 1:
        assert decision.action == HandOver(1)


def test_a_forest_keeps_to_its_limits() -> None:
    costs = Costs(rtt_ms=50, row_ms=1, read_base_ms=200, read_token_ms=1)
    for texts in range(10, 40, 5):
        shape = _shape(_decide(costs, _learned(0.9, 3), 50, Limits(5, 4, texts)))
        assert 3 <= shape.width <= 5
        assert 1 <= shape.depth <= 4
        assert 3 + shape.width * shape.depth <= texts
    assert _shape(_decide(costs, _learned(0.9, 3), width=4)).width == 4


def test_the_best_shape_is_the_best_of_all_by_simulation() -> None:
    """The expected layers per second of every shape, with layers that stand at random."""
    costs = Costs(draft_ms=15, row_ms=4, rtt_ms=40, read_base_ms=120, read_token_ms=4)
    learned = _learned(0.85)
    rng = np.random.default_rng(2)
    rates = {}
    for width in range(2, 7):
        for depth in range(1, 7):
            stood = (rng.random((4000, depth, width)) < learned.accepted.value).sum(axis=2) >= 2
            layers = 1 + np.cumprod(stood, axis=1).sum(axis=1)
            rates[Shape(width, depth)] = layers.mean() / round_ms(costs, 2, learned.texts(width), depth)
    chosen = _shape(_decide(costs, learned))
    assert rates[chosen] >= 0.98 * max(rates.values())


def test_a_forest_is_tried_now_and_then() -> None:
    planner = ForestPlanner(_learned(0.02))
    costs, situation = Costs(rtt_ms=100), Situation(2, 500, LIMITS)
    drafted = alone = 0
    for _ in range(6):
        match planner.decide(costs, situation).action:
            case DraftForest(width, depth):
                assert depth == 1
                drafted += 1
                planner.judged(Shape(width, 1), layers=1, accepted=0, tested=2, texts=2)
            case HandOver(layers):
                alone += layers
                planner.judged(Shape(0, 0), layers=layers, accepted=0, tested=0, texts=0)
            case other:
                raise AssertionError(other)
    assert (drafted, alone) == (3, 3 * 64)


def test_verdicts_without_tests_teach_nothing() -> None:
    found = Learned(2)
    before = found.accepted.value
    found.judged(Shape(0, 0), layers=9, accepted=0, tested=0, texts=0)
    assert found.accepted.value == before
    found.judged(Shape(4, 3), layers=4, accepted=9, tested=10, texts=12)
    assert found.accepted.value > before

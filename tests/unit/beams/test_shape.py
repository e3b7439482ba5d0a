"""The shape of forests: by hand, by simulation, and at the ends of the range of costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from chaperone_common.beams.device import Gain
from edge_client.beams.costs import ForestCosts
from edge_client.beams.shape import ForestPlanner, Learned, Limits, Shape, Situation, layers_gained, round_ms
from edge_client.planner import Decision, DraftForest, HandOver

LIMITS = Limits(width=6, depth=6, texts=64)


def _gain(needed: int | None, live: int, depth: int = 1) -> Gain:
    """Return the gain of layers that stood with the first `needed` of their live draws, or of one that fell."""
    return Gain(1, (live,)) if needed is None else Gain(depth + 1, (live,) * depth, (needed,) * depth)


def _teach(learned: Learned, needed: int | None, width: int, *, times: int = 1, unlike: int = 0) -> None:
    """Let layers stand with the first `needed` of their draws, or none stand; `unlike` texts follow the first."""
    draws = [min(place, unlike) for place in range(width)]
    for _ in range(times):
        accepted, tested = (learned.num_beams, needed) if needed is not None else (0, width)
        learned.judged(_gain(needed, width), [draws], accepted=accepted, tested=tested, running=learned.num_beams)


def _learned(accepted: float, num_beams: int = 2, unlike: float = 1.0) -> Learned:
    """Return what many layers of independent draws teach; about 80 count."""
    found, rng = Learned(num_beams), np.random.default_rng(1)
    for _ in range(600):
        stood = np.flatnonzero(rng.random(8) < accepted)
        draws = np.cumsum([0, *(rng.random(7) < unlike)]).tolist()
        needed = int(stood[num_beams - 1]) + 1 if len(stood) >= num_beams else None
        found.judged(_gain(needed, 8), [draws], accepted=len(stood[:num_beams]), tested=needed or 8, running=2)
    return found


def _decide(
    costs: ForestCosts, learned: Learned, left: int = 50, limits: Limits = LIMITS, width: int | None = None
) -> Decision:
    return ForestPlanner(learned).decide(costs, Situation(learned.num_beams, left, limits, width))


def _shape(decision: Decision) -> Shape:
    match decision.action:
        case DraftForest(width, depth):
            return Shape(width, depth)
        case _:
            return Shape(0, 0)


@pytest.mark.parametrize("accepted", [0.5, 0.8])
def test_independent_draws_stand_as_often_as_in_a_simulation(accepted: float) -> None:
    found = _learned(accepted, num_beams=3).stands()
    stood = (np.random.default_rng(2).random((100_000, 8)) < accepted).cumsum(axis=1) >= 3
    for width in range(1, 9):
        assert found[width] == pytest.approx(stood[:, width - 1].mean(), abs=0.12)
    assert found[2] == 0.0
    assert found == sorted(found)


def test_a_layer_teaches_about_all_widths_up_to_its_own() -> None:
    found = Learned(2)
    _teach(found, 4, 6, times=60)
    assert found.stands()[3] < 0.1
    assert found.stands()[4] > 0.9
    _teach(found, 2, 6, times=60)
    assert found.stands()[2] > 0.5


def test_layers_that_stand_with_few_draws_or_not_at_all_promise_nothing_of_wider_ones() -> None:
    alike, independent = Learned(2), _learned(0.7)
    for _ in range(40):
        _teach(alike, 2, 4)
        _teach(alike, None, 4)
    assert alike.stands()[4] == pytest.approx(0.5, abs=0.1)
    assert alike.stands()[8] < 0.65 < independent.stands()[8]


def test_layers_that_were_not_tested_teach_nothing() -> None:
    found, other = Learned(2), Learned(2)
    draws = [[0, 1, 2]] * 3
    for each, layers in ((found, draws), (other, draws[:2])):
        each.judged(Gain(2, (3, 2), (2,)), layers, accepted=2, tested=4, running=2)
    assert found.stands() == pytest.approx(other.stands(), abs=0.01)
    assert found.stands_deeper(found.stands()) == pytest.approx(other.stands_deeper(other.stands()), abs=0.01)


def test_draws_after_texts_that_did_not_survive_are_lost() -> None:
    lost, kept = Learned(2), Learned(2)
    for _ in range(80):
        lost.judged(Gain(2, (6, 2), (2,)), [[0] * 6] * 2, accepted=3, tested=4, running=2)
        kept.judged(Gain(3, (6, 6), (2, 2)), [[0] * 6] * 2, accepted=4, tested=4, running=2)
    first = [1.0] * 17
    first[:2] = [0.0, 0.5]
    assert lost.stands_deeper(first)[6] < 0.5 < 0.9 < kept.stands_deeper(first)[6]
    assert lost.stands_deeper(first)[2] > 0.9, "a forest as wide as the beams loses no draw"
    assert lost.stands_deeper(first)[4] > lost.stands_deeper(first)[6], "layers of another width are foreseen"


def test_draws_of_one_text_are_one_text() -> None:
    found = Learned(4)
    _teach(found, 4, 5, times=40)
    assert found.texts()[5] == pytest.approx(1.0, abs=0.3)
    assert found.texts()[8] == pytest.approx(1.0, abs=0.5)
    _teach(found, 4, 5, times=300, unlike=4)
    assert found.texts()[5] == pytest.approx(5.0, abs=0.3)


def test_a_round_gains_the_layers_that_stand_and_one_more() -> None:
    assert layers_gained(0.5, 0.5, 0) == 1
    assert layers_gained(0.5, 0.4, 2) == 1 + 0.5 + 0.5 * 0.4
    assert layers_gained(1.0, 1.0, 4) == 5


def test_a_round_takes_the_time_of_its_parts() -> None:
    costs = ForestCosts(draft_ms=20, row_ms=5, rtt_ms=100, read_base_ms=50, read_text_ms=3)
    drafting = (20 + 5) + 2 * (20 + 15)
    assert round_ms(costs, 2, 4, 3, 0.0) == drafting + 100 + 50 + 3 * (2 + 12)
    assert round_ms(costs, 2, 4, 3, 1.0) == (20 + 5) + drafting + 100 + 50 + 3 * (2 + 12)


def test_far_clouds_get_deep_forests_and_unlike_models_none() -> None:
    near, far = ForestCosts(rtt_ms=0, read_base_ms=50), ForestCosts(rtt_ms=200)
    assert _shape(_decide(far, _learned(0.95))).depth > _shape(_decide(near, _learned(0.6))).depth
    assert isinstance(_decide(far, _learned(0.02, 4)).action, HandOver)
    fast = ForestCosts(read_base_ms=1, read_text_ms=0.1, rtt_ms=200)
    assert isinstance(_decide(fast, _learned(0.9)).action, HandOver)


def test_with_stop_strings_the_cloud_alone_waits_for_the_device() -> None:
    costs = ForestCosts(rtt_ms=200, read_base_ms=20, read_text_ms=1)
    planner = ForestPlanner(_learned(0.7))
    assert isinstance(planner.decide(costs, Situation(2, 50, LIMITS)).action, HandOver)
    decision = planner.decide(costs, Situation(2, 50, LIMITS, stops=True))
    assert isinstance(decision.action, DraftForest)
    assert decision.figures["alone_per_s"] == pytest.approx(1e3 / (200 + 20 + 2), rel=0.01)


def test_a_doubtful_draft_is_widened() -> None:
    costs = ForestCosts(rtt_ms=20, read_base_ms=100, row_ms=2, read_text_ms=1)
    assert _shape(_decide(costs, _learned(0.6))).width > 2


def test_texts_that_are_alike_cost_less_and_are_drafted_deeper() -> None:
    costs = ForestCosts(rtt_ms=50, read_base_ms=100, row_ms=15, read_text_ms=10)
    alike, unlike = (_decide(costs, _learned(0.9, 4, unlike=share)) for share in (0.0, 1.0))
    assert _shape(alike).width >= _shape(unlike).width
    assert alike.figures["layers_per_s"] > unlike.figures["layers_per_s"]


@pytest.mark.parametrize("layers_left", [1, 2, 4])
def test_a_forest_stays_below_the_limit_of_the_text(layers_left: int) -> None:
    decision = _decide(ForestCosts(rtt_ms=300), _learned(0.99, 1), layers_left)
    assert _shape(decision).depth < layers_left
    if layers_left == 1:
        assert decision.action == HandOver(1)


def test_a_forest_keeps_to_its_limits() -> None:
    costs = ForestCosts(rtt_ms=50, row_ms=1, read_base_ms=200, read_text_ms=1)
    for texts in range(10, 40, 5):
        shape = _shape(_decide(costs, _learned(0.9, 3), 50, Limits(5, 4, texts)))
        assert 3 <= shape.width <= 5
        assert 1 <= shape.depth <= 4
        assert 3 + shape.width * shape.depth <= texts
    assert _shape(_decide(costs, _learned(0.9, 3), width=4)).width == 4


def test_the_best_shape_is_the_best_of_all_by_simulation() -> None:
    """The expected layers per second of every shape, with draws that stand, and survive, at random."""
    costs = ForestCosts(draft_ms=15, row_ms=4, rtt_ms=40, read_base_ms=120, read_text_ms=4)
    learned, rng, rates = _learned(0.85), np.random.default_rng(2), {}
    for width in range(2, 7):
        live = rng.random((4000, 6, width)) < 4 / (4 + width - 2)  # one of two that stood, for each other draw
        live[:, 0] = True
        stood = ((rng.random(live.shape) < 0.85) & live).sum(axis=2) >= 2
        for depth in range(1, 7):
            whole = np.cumprod(stood[:, :depth], axis=1)
            elapsed_ms = round_ms(costs, 2, learned.texts()[width], depth, float(whole[:, -1].mean()))
            rates[Shape(width, depth)] = (1 + whole.sum(axis=1)).mean() / elapsed_ms
    chosen = _shape(_decide(costs, learned))
    assert rates[chosen] >= 0.97 * max(rates.values())


def test_a_small_forest_measures_all_costs_first() -> None:
    assert _shape(_decide(ForestCosts(known=False), Learned(3))) == Shape(3, 2)
    assert _shape(_decide(ForestCosts(known=False), Learned(3), width=5)) == Shape(5, 2)


def test_a_width_that_cannot_stand_is_never_drafted() -> None:
    for known in (False, True):
        decision = _decide(ForestCosts(known=known, rtt_ms=0), Learned(3), left=500, width=2)
        assert decision.action == HandOver(500)
    dynamic = Learned(3, least=1)  # the number of beams may fall to those that stand
    assert dynamic.stands()[2] > 0.5


def _alone(costs: ForestCosts, decide: Sequence[int]) -> tuple[float, float, int]:
    """Return the time alone and in forests that never stand, over texts of these lengths, and the forests."""
    planner = ForestPlanner(Learned(2))
    alone_ms = drafted_ms = 0.0
    forests = 0
    for left in decide:
        while left:
            decision = planner.decide(costs, Situation(2, left, LIMITS))
            match decision.action:
                case DraftForest(width, depth):
                    forests += 1
                    drafted_ms += round_ms(costs, 2, planner.learned.texts()[width], depth, 0.0) + costs.rtt_ms
                    layers = [list(range(width))] * depth
                    planner.judged(_gain(None, width), layers, accepted=0, tested=width, running=2)
                    left -= 1
                case HandOver(layers):
                    alone_ms += layers * costs.reading_ms(2)
                    for _ in range(layers):
                        planner.drawn_alone(costs.reading_ms(2), 2)
                    left -= layers
                case other:
                    raise AssertionError(other)
    return alone_ms, drafted_ms, forests


@pytest.mark.parametrize("rtt_ms", [0.0, 50.0, 200.0])
def test_forests_that_never_stand_are_tried_now_and_then_for_a_small_share_of_the_time(rtt_ms: float) -> None:
    costs = ForestCosts(draft_ms=20, row_ms=5, rtt_ms=rtt_ms, read_base_ms=30, read_text_ms=1)
    alone_ms, drafted_ms, forests = _alone(costs, [128] * 40)
    assert forests > 5
    assert drafted_ms < 0.05 * alone_ms


def test_a_layer_alone_costs_what_was_measured_between_layers() -> None:
    costs = ForestCosts(read_base_ms=40, read_text_ms=5, gap_ms=7)
    assert _decide(costs, Learned(2)).figures["alone_per_s"] == pytest.approx(1e3 / (40 + 2 * 5 + 7))

"""The rule of a layer, on distributions of a few outcomes: its law is that of independent draws from p_beam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest

from chaperone_common.beams.chance import PhiloxChance, outcome_at
from chaperone_common.beams.rule import Chance, Float64s, LayerOutcome, beam_law, residual, verify_layer
from chaperone_common.beams.width import WidthLaw, acceptance_rates, acceptances
from tests.unit.beams.every_chance import law_of, total_variation

P = np.array([0.55, 0.25, 0.15, 0.05, 0.0])
Q = np.array([0.30, 0.40, 0.05, 0.0, 0.25])

Rule = Callable[[Float64s, Float64s, Sequence[int], int, Chance], LayerOutcome]


def _tv_to_beam_sampling(rule: Rule, width: int, draws: int, draw_all: Callable[..., list[int]] | None = None) -> float:
    """Return the total variation between the beams of a layer and W_L independent draws from P."""

    def run(chance: Chance) -> tuple[int, ...]:
        drawn = draw_all(chance, draws) if draw_all else [chance.outcome(Q) for _ in range(draws)]
        found = rule(P, Q, drawn, width, chance)
        return tuple(sorted([*(drawn[number] for number in found.accepted), *found.drawn]))

    truth = law_of(lambda chance: tuple(sorted(chance.outcome(P) for _ in range(width))))
    return total_variation(law_of(run), truth)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("draws", [0, 1, 3, 4])
def test_the_beams_of_a_layer_are_independent_draws_of_the_large_model(width: int, draws: int) -> None:
    assert _tv_to_beam_sampling(verify_layer, width, draws) == pytest.approx(0, abs=1e-9)


def test_enough_draws_that_stand_end_the_layer() -> None:
    found = verify_layer(P, P, [0, 1, 0, 2], 2, PhiloxChance(1, 1))
    assert found == LayerOutcome((0, 1), ())
    assert found.whole


def test_no_draw_leaves_all_beams_to_the_large_model() -> None:
    found = verify_layer(P, Q, [], 3, PhiloxChance(1, 1))
    assert not found.accepted
    assert len(found.drawn) == 3
    assert not found.whole


def test_a_width_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="width: 0; at least one beam is needed"):
        verify_layer(P, Q, [0], 0, PhiloxChance(1, 1))


def test_the_residual_of_equal_laws_is_the_law() -> None:
    np.testing.assert_array_equal(residual(P, P), P)


def test_the_law_of_a_layer_weighs_tokens_by_their_beams() -> None:
    law = beam_law(np.log([0.2, 0.6]) - 700, [np.array([0.5, 0.5]), np.array([1.0])])
    np.testing.assert_allclose(law, [0.125, 0.125, 0.75])


# Faults that others have published: the tests above find each of them.


def _inverted_ratio(p: Float64s, q: Float64s, draws: Sequence[int], width: int, chance: Chance) -> LayerOutcome:
    """Test with the ratio as the paper's text prints it, q / p'."""
    accepted: list[int] = []
    p_left = p
    for number, outcome in enumerate(draws):
        if len(accepted) == width:
            break
        if p_left[outcome] > 0 and chance.stands(q[outcome] / p_left[outcome]):
            accepted.append(number)
            p_left = p
        else:
            p_left = residual(p_left, q)
    laws = [p_left, *[p] * width][: width - len(accepted)]
    return LayerOutcome(tuple(accepted), tuple(chance.outcome(law) for law in laws))


def _double_subtraction(p: Float64s, q: Float64s, draws: Sequence[int], width: int, chance: Chance) -> LayerOutcome:
    """Subtract q twice after a rejection."""
    accepted: list[int] = []
    p_left = p
    for number, outcome in enumerate(draws):
        if len(accepted) == width:
            break
        if chance.stands(p_left[outcome] / q[outcome]):
            accepted.append(number)
            p_left = p
        else:
            p_left = residual(residual(p_left, q), q)
    laws = [p_left, *[p] * width][: width - len(accepted)]
    return LayerOutcome(tuple(accepted), tuple(chance.outcome(law) for law in laws))


class _OneDecision:
    """Decisions that reuse one uniform, as code does that sets the seed in its loop."""

    def __init__(self, chance: Chance) -> None:
        self._u = chance.outcome(np.full(40, 1 / 40)) / 40 + 1 / 80

    def stands(self, probability: float) -> bool:
        return self._u < probability

    def outcome(self, law: Float64s) -> int:
        return outcome_at(law, self._u)


def _reused_uniforms(p: Float64s, q: Float64s, draws: Sequence[int], width: int, chance: Chance) -> LayerOutcome:
    return verify_layer(p, q, draws, width, _OneDecision(chance))


@pytest.mark.parametrize("rule", [_inverted_ratio, _double_subtraction, _reused_uniforms])
def test_planted_faults_are_found(rule: Rule) -> None:
    assert _tv_to_beam_sampling(rule, 2, 3) > 0.05


def test_draws_without_replacement_are_found() -> None:
    def draw_all(chance: Chance, draws: int) -> list[int]:
        drawn: list[int] = []
        for _ in range(draws):
            left = Q.copy()
            left[drawn] = 0
            drawn.append(chance.outcome(left / left.sum()))
        return drawn

    assert _tv_to_beam_sampling(verify_layer, 2, 3, draw_all) > 0.05


def test_the_noise_of_a_position_gives_independent_decisions() -> None:
    """The law by Philox: 12 outcomes of two beams, within what 20,000 positions allow."""
    count = 20_000
    found = np.zeros((5, 5))
    for position in range(count):
        draws = PhiloxChance(7, position, domain=2)
        drawn = [draws.outcome(Q) for _ in range(3)]
        layer = verify_layer(P, Q, drawn, 2, PhiloxChance(7, position))
        first, second = [*(drawn[number] for number in layer.accepted), *layer.drawn]
        found[first, second] += 1 / count
    assert np.abs(found - np.outer(P, P)).sum() / 2 < 0.012


# The width.


@pytest.mark.parametrize("draws", [1, 2, 4, 6])
def test_the_law_of_widths_agrees_with_all_ways_to_draw(draws: int) -> None:
    """Pr[at least K accepted], with the same tests but no limit to the width."""

    def run(chance: Chance) -> int:
        drawn = [chance.outcome(_Q3) for _ in range(draws)]
        return len(verify_layer(_P3, _Q3, drawn, draws, _FirstWays(chance)).accepted)

    law = law_of(run)
    expected = [sum(p for count, p in law.items() if isinstance(count, int) and count >= k) for k in range(draws + 1)]
    np.testing.assert_allclose(acceptances(acceptance_rates(_P3, _Q3, draws)), expected, atol=1e-12)


_P3, _Q3 = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.6, 0.1])


class _FirstWays:
    """Tests by chance; the large model's own draws are of no interest here."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance

    def stands(self, probability: float) -> bool:
        return self._chance.stands(probability)

    def outcome(self, law: Float64s) -> int:
        return 0


def test_the_law_of_widths_agrees_with_simulation() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(12) * 0.5), rng.dirichlet(np.ones(12) * 0.5)
    expected = acceptances(acceptance_rates(p, q, 4))
    counts = np.zeros(5)
    rounds = 20_000
    for position in range(rounds):
        draws = rng.choice(12, 4, p=q).tolist()
        counts[: len(verify_layer(p, q, draws, 4, PhiloxChance(3, position)).accepted) + 1] += 1 / rounds
    np.testing.assert_allclose(counts, expected, atol=0.012)


def test_published_code_that_subtracts_twice_has_another_law() -> None:
    """The recursion with a double subtraction is not what happens."""
    p_left, rates = P, []
    for _ in range(3):
        rates.append(np.minimum(p_left, Q).sum())
        p_left = residual(residual(p_left, Q), Q)
    assert abs(acceptances(np.array(rates))[1] - acceptances(acceptance_rates(P, Q, 3))[1]) > 0.01


def test_the_widest_that_is_likely_enough_is_chosen() -> None:
    chances = acceptances(acceptance_rates(_P3, _Q3, 4))
    for threshold, least in product((0.3, 0.7, 0.9, 0.999), (1, 2)):
        width = WidthLaw(threshold, least, most=3).width(_P3, _Q3, 4)
        likely = max(k for k in range(5) if chances[k] >= threshold)
        assert width == min(max(least, likely), 3)


def test_equal_laws_allow_all_draws() -> None:
    np.testing.assert_allclose(acceptances(acceptance_rates(_P3, _P3, 3)), [1, 1, 1, 1])

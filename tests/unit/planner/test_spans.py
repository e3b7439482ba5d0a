"""The near view, compared with a plain calculation for every length."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.planner import Costs
from edge_client.planner.spans import LONGEST, best_span, best_take_back, survivals

COSTS = Costs(draft_ms=10.0, rtt_ms=60.0, read_base_ms=100.0, read_token_ms=2.0, stream_ms=100.0, risk=0.05)
RATE = 0.03
RISKS = st.lists(st.floats(0.0, 0.98), max_size=12)


def chance(risks: Sequence[float], count: int, later: float) -> float:
    """Return the chance that the first `count` tokens stand, factor by factor."""
    product = 1.0
    for index in range(count):
        product *= 1 - (risks[index] if index < len(risks) else later)
    return product


def worth(risks: Sequence[float], length: int, wait_ms: float, costs: Costs, rate: float) -> float:
    """Return the tokens of a span and of the best span after it, less their time, as the description defines them."""

    def tokens(first: int, count: int) -> float:
        return sum(chance(risks, index, costs.risk) for index in range(first, first + count + 1))

    drafting_ms = max(0, length - len(risks)) * costs.draft_ms
    spent_ms = max(0.0, drafting_ms - wait_ms) + costs.read_ms(length)
    free_ms = max(wait_ms, drafting_ms) + costs.read_ms(length)
    begins = chance(risks, length + 1, costs.risk)
    after = 0.0
    for count in range(1, LONGEST + 1):
        idle_ms = max(0.0, (length + 1 + count - len(risks)) * costs.draft_ms - free_ms)
        gained = tokens(length + 1, count) - rate * (idle_ms + costs.read_ms(count)) * begins
        after = max(after, gained)
    own = sum(chance(risks, index, costs.risk) for index in range(1, length + 1))
    return 1 + own - rate * spent_ms + after


def test_survivals_are_chances_that_all_earlier_tokens_stand() -> None:
    assert survivals([0.5, 0.2], 4, 0.1) == pytest.approx([1.0, 0.5, 0.4, 0.36, 0.324])
    assert survivals([0.5, 0.2], 1, 0.1) == pytest.approx([1.0, 0.5]), "cut at the given length"


@pytest.mark.parametrize("wait_ms", [0.0, 70.0])
@pytest.mark.parametrize("risks", [[], [0.02] * 5, [0.02, 0.9, 0.02], [0.3] * 8])
def test_no_length_is_worth_more_than_the_planned_one(risks: list[float], wait_ms: float) -> None:
    dear = 0.5  # a rate so high that the given one is used
    plan = best_span(risks, 12, wait_ms, COSTS, dear)
    values = [worth(risks, length, wait_ms, COSTS, dear) for length in range(1, len(risks) + 13)]
    assert plan.value == pytest.approx(max(values))
    assert plan.value == pytest.approx(values[plan.tokens - 1])


@given(risks=RISKS, drafts=st.integers(0, 100), wait_ms=st.floats(0, 500), rate=st.floats(1e-4, 1.0))
def test_a_plan_is_an_available_length(risks: list[float], drafts: int, wait_ms: float, rate: float) -> None:
    plan = best_span(risks, drafts, wait_ms, COSTS, rate)
    if risks or drafts:
        assert 1 <= plan.tokens <= len(risks) + drafts
    else:
        assert plan.tokens == 0


def test_a_span_ends_before_a_likely_override() -> None:
    dear = replace(COSTS, read_token_ms=10.0)
    assert best_span([0.01] * 6 + [0.97] + [0.01] * 6, 0, 0.0, dear, RATE).tokens in (6, 7)


def test_spans_are_longer_while_the_cloud_is_busy() -> None:
    assert best_span([], 60, 300.0, COSTS, RATE).tokens > best_span([], 60, 0.0, COSTS, RATE).tokens


def test_riskier_drafts_give_shorter_spans() -> None:
    lengths = [best_span([], 60, 0.0, replace(COSTS, risk=risk), RATE).tokens for risk in (0.01, 0.1, 0.5)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


# --- Taking back -----------------------------------------------------------------------------------------------------


def test_a_take_back_reaches_beyond_the_tokens_that_the_cloud_writes() -> None:
    for written, drafted in itertools.product((0, 3, 9), (0, 5, 20)):
        plan = best_take_back([0.02] * drafted, written, 40, COSTS)
        assert written < plan.tokens <= 40


def test_only_a_sure_draft_far_ahead_is_worth_a_take_back() -> None:
    sure, unsure = (best_take_back([risk] * 20, 1, 40, replace(COSTS, risk=risk)) for risk in (0.01, 0.9))
    assert sure.value > 1 > 0 > unsure.value


def test_a_draft_is_sent_once_further_tokens_do_not_pay() -> None:
    costs = replace(COSTS, draft_ms=5.0, read_base_ms=300.0, stream_ms=300.0, risk=0.01)
    drafted = next(count for count in range(200) if best_take_back([0.01] * count, 0, 500, costs).tokens <= count)
    assert 20 < drafted <= 64


def test_the_risk_of_tokens_that_the_cloud_writes_does_not_count() -> None:
    """A failed take-back costs nothing: the cloud does not read the contradicting span and continues to write."""
    sure, bold = (best_take_back([risk] * 3 + [0.02] * 20, 3, 40, COSTS) for risk in (0.02, 0.9))
    assert bold.tokens == sure.tokens
    assert bold.value == pytest.approx(sure.value)


def test_a_take_back_is_worth_less_with_fewer_tokens_beyond_the_clouds() -> None:
    values = [best_take_back([0.05] * 20, written, 21, COSTS).value for written in (0, 8, 16, 20)]
    assert values == sorted(values, reverse=True)

"""The verdict on a pair follows the planner's own schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaperone_common.planning.costs import Costs
from chaperone_common.planning.schedule import schedule_for
from cloud_supervisor.pairs.verdict import Agreement, judge, least_agreement, speedup

SLOW_CLOUD = Costs(draft_ms=20, rtt_ms=50, read_base_ms=190, read_token_ms=6, stream_ms=196)
FAST_CLOUD = Costs(draft_ms=20, rtt_ms=50, read_base_ms=9, read_token_ms=0.3, stream_ms=9.3)


@pytest.mark.parametrize("agreement", [0.3, 0.6, 0.8, 0.95, 1.0])
def test_the_speedup_is_that_of_the_planners_schedule(agreement: float) -> None:
    schedule = schedule_for(replace(SLOW_CLOUD, risk=1 - agreement))
    expected = 1.0 if schedule.streams else schedule.rate * SLOW_CLOUD.stream_ms
    assert speedup(SLOW_CLOUD, agreement) == expected


def test_the_planner_streams_below_the_least_agreement_and_not_above() -> None:
    least = least_agreement(SLOW_CLOUD)
    assert least is not None
    assert 0 < least < 0.9
    assert schedule_for(replace(SLOW_CLOUD, risk=1 - (least - 0.01))).streams
    assert not schedule_for(replace(SLOW_CLOUD, risk=1 - least)).streams


def test_a_pair_that_agrees_often_is_worth_it() -> None:
    verdict = judge(SLOW_CLOUD, Agreement(475, 500))
    assert verdict.answer == "yes"
    assert verdict.speedup == speedup(SLOW_CLOUD, 0.95)
    assert verdict.speedup > 2


def test_a_pair_that_agrees_rarely_is_not() -> None:
    verdict = judge(SLOW_CLOUD, Agreement(100, 500))
    assert verdict.answer == "no"
    assert "0.20 of the tokens" in verdict.reason


def test_few_tokens_near_the_least_agreement_leave_it_open() -> None:
    least = least_agreement(SLOW_CLOUD)
    assert least is not None
    verdict = judge(SLOW_CLOUD, Agreement(round(least * 50), 50))
    assert verdict.answer == "open"
    assert "measure more" in verdict.reason


def test_without_a_measurement_the_verdict_names_the_least_agreement() -> None:
    verdict = judge(SLOW_CLOUD, None)
    assert (verdict.answer, verdict.speedup) == ("open", None)
    assert f"from {least_agreement(SLOW_CLOUD):.2f} on" in verdict.reason


def test_a_cloud_that_is_faster_than_the_device_needs_no_draft() -> None:
    verdict = judge(FAST_CLOUD, Agreement(500, 500))
    assert (verdict.answer, verdict.least_agreement) == ("no", None)


def test_the_interval_holds_the_share_and_shrinks_with_more_tokens() -> None:
    few, many = Agreement(9, 10), Agreement(900, 1000)
    for agreement in (few, many, Agreement(0, 5), Agreement(5, 5)):
        low, high = agreement.interval
        assert 0 <= low <= agreement.share <= high <= 1
        assert low < high
    assert few.interval[0] < many.interval[0]
    assert Agreement(5, 10).interval == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson, from published tables

"""Rules about the price of a request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaperone_common.planning.schedule import Schedule
from edge_client.planner import Costs
from edge_client.planner.questions import (
    default_price_ms,
    skipping_schedule,
    worth_asking_ahead,
    worth_reading_ahead,
)

COSTS = Costs(draft_ms=20, rtt_ms=100, read_base_ms=300, read_token_ms=15, risk=0.03, fires=0.1, request_ms=60)


def test_a_price_is_a_part_of_the_cloud_time_that_skipping_pays_for() -> None:
    assert 0 < default_price_ms(COSTS) < COSTS.read_base_ms
    assert default_price_ms(replace(COSTS, read_base_ms=600)) == 2 * default_price_ms(COSTS), "such as a full queue"
    assert default_price_ms(replace(COSTS, fires=0.5)) < default_price_ms(COSTS)
    assert default_price_ms(replace(COSTS, fires=1.0)) == 0, "a gate that asks about everything saves nothing"


STREAMING = Schedule(1 / 40, streams=True, cloud_writes_on=True)


def test_a_device_that_skips_nothing_lets_the_cloud_stream() -> None:
    costs = replace(COSTS, draft_ms=1, stream_ms=40, risk=0.0, fires=1.0)
    assert skipping_schedule(STREAMING, costs) == STREAMING


def test_a_device_that_skips_everything_writes_as_fast_as_it_drafts() -> None:
    costs = replace(COSTS, draft_ms=30, stream_ms=40, risk=0.5, fires=0.0)
    assert skipping_schedule(STREAMING, costs) == Schedule(1 / 30, streams=False, cloud_writes_on=True)
    assert skipping_schedule(STREAMING, replace(costs, draft_ms=39)) == STREAMING, "the cloud's own rate is certain"


def test_overrides_count_where_the_gate_can_find_them() -> None:
    costs = replace(COSTS, draft_ms=30, stream_ms=40, fires=0.05)
    assert skipping_schedule(STREAMING, replace(costs, risk=0.001)).rate > 1 / 35
    assert skipping_schedule(STREAMING, replace(costs, risk=0.5)) == STREAMING
    spans = Schedule(1 / 10, streams=False, cloud_writes_on=False)
    assert skipping_schedule(spans, costs) == spans


@pytest.mark.parametrize(
    ("stands", "fails", "worth"),
    [
        (1.0, 0.1, True),  # nothing can void the question
        (0.5, 0.5, True),  # 0.25 x 120 ms against 0.5 x 60 ms
        (0.5, 0.4, False),
        (0.9, 0.01, False),  # the question's tokens stand anyway
        (0.01, 1.0, False),  # the question is void
    ],
)
def test_a_question_is_asked_ahead_if_tokens_in_flight_stand_and_its_own_may_fail(
    stands: float, fails: float, worth: bool
) -> None:
    assert worth_asking_ahead(stands, fails, COSTS) is worth


def test_a_free_question_is_always_asked_ahead() -> None:
    assert worth_asking_ahead(0.001, 0.0, replace(COSTS, request_ms=0.0))


def most_unread(costs: Costs, ending: float = 0.0) -> int:
    """Return the most skipped tokens that are not read ahead."""
    return next(tokens for tokens in range(10_000) if worth_reading_ahead(tokens + 1, ending, costs))


def test_many_unread_tokens_are_read_ahead_of_the_next_question() -> None:
    assert 10 < most_unread(COSTS) < 40
    assert most_unread(replace(COSTS, read_token_ms=150)) < most_unread(COSTS), "each token delays the question more"
    assert most_unread(replace(COSTS, risk=0.003)) > most_unread(COSTS), "few questions find an override"
    assert most_unread(replace(COSTS, request_ms=600)) > most_unread(COSTS)


def test_reading_ahead_at_the_best_interval_costs_less_than_at_any_other() -> None:
    def cost_per_token(interval: int) -> float:
        """Return the price of the requests, and the delay that unread tokens cause, half an interval on average."""
        return costs.request_ms / interval + costs.risk * costs.read_token_ms * interval / 2

    costs = replace(COSTS, fires=0.0001, draft_ms=1e6)  # no question comes while the cloud reads
    best = min(range(1, 500), key=cost_per_token)
    assert most_unread(costs) == pytest.approx(best, abs=1)


def test_unread_tokens_are_read_sooner_where_the_text_may_end() -> None:
    assert most_unread(COSTS, ending=0.5) < most_unread(COSTS)

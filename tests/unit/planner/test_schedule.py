"""The long view: the best rate of spans, compared with a search over schedules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest

from chaperone_common.planning.schedule import schedule_for
from edge_client.planner import Costs

# Powers of two, so that rounding changes nothing; the cloud never writes by itself.
COSTS = Costs(
    draft_ms=16.0,
    row_ms=4.0,
    rtt_ms=64.0,
    read_base_ms=128.0,
    read_token_ms=2.0,
    stream_ms=2.0**20,
    risk=1 / 16,
    foresight=0.0,
    branch_tokens=4.0,
)
NEVER = 2.0**20


def rate_of(costs: Costs, length: Callable[[float], int]) -> float:
    """Return the tokens a millisecond of the schedule that sends `length(stock)` tokens.

    Overrides are weighed by their chance, not drawn. The code follows the description of the process, span by span
    until an override is almost certain.
    """

    def until_override(stock: float) -> tuple[float, float]:
        tokens = time_ms = 0.0
        reached = 1.0
        while reached > 1e-9:
            span = length(stock)
            stands = [(1 - costs.risk) ** count for count in range(1, span + 1)]
            reading_ms = costs.read_ms(span)
            tokens += reached * (1 + sum(stands))
            time_ms += reached * (max(0.0, span - stock) * costs.draft_ms + reading_ms)
            reached *= stands[-1] * (1 - costs.risk)  # the cloud's own token must equal the draft, too
            stock = max(0.0, max(0.0, stock - span) + reading_ms / costs.draft_ms - 1)
        return tokens, time_ms

    tokens, time_ms = until_override(0.0)
    foreseen_tokens, foreseen_ms = until_override(costs.branch_tokens)
    share = costs.foresight
    return (share * foreseen_tokens + (1 - share) * tokens) / (
        costs.rtt_ms + share * foreseen_ms + (1 - share) * time_ms
    )


def schedules() -> Iterator[Callable[[float], int]]:
    """Yield schedules that send the stock within a least and a most length, or draft more first."""
    lengths = [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48]
    for least, most, more in itertools.product(lengths, lengths, (0, 1, 2, 4, 8)):
        if least <= most:
            yield partial(_clipped, least=least, most=most, more=more)


def _clipped(stock: float, *, least: int, most: int, more: int) -> int:
    return min(max(int(stock) + more, least), most)


def best_rate(costs: Costs) -> float:
    return max(rate_of(costs, length) for length in schedules())


SETTINGS = [
    COSTS,
    replace(COSTS, rtt_ms=256.0),
    replace(COSTS, rtt_ms=8.0, risk=1 / 4),
    replace(COSTS, draft_ms=64.0, risk=1 / 32),
    replace(COSTS, read_token_ms=16.0),
    replace(COSTS, foresight=1 / 2),
    replace(COSTS, read_base_ms=16.0, rtt_ms=32.0),
]


@pytest.mark.parametrize("costs", SETTINGS)
def test_the_rate_equals_the_best_schedule_of_a_search(costs: Costs) -> None:
    found, tried = schedule_for(costs), best_rate(costs)
    assert not found.streams
    assert tried * 0.99 <= found.rate <= tried * 1.04, "and no schedule of another form is much better"


@pytest.mark.parametrize(
    "costs",
    [
        Costs(21.7, 5.3, 93.0, 331.0, 11.3, NEVER, 0.037, 0.41, 5.2),
        Costs(11.3, 2.1, 21.0, 47.0, 0.7, NEVER, 0.091, 0.0, 4.0),
        Costs(35.5, 9.9, 190.0, 23.5, 0.3, NEVER, 0.015, 0.7, 3.1),
    ],
)
def test_rounding_the_costs_moves_the_rate_by_a_few_percent(costs: Costs) -> None:
    assert schedule_for(costs).rate == pytest.approx(best_rate(costs), rel=0.06)


@pytest.mark.parametrize("stream_ms", [4.0, 32.0, 128.0, 512.0])
@pytest.mark.parametrize("draft_ms", [4.0, 16.0, 256.0])
@pytest.mark.parametrize("rtt_ms", [1.0, 512.0])
def test_the_rate_is_never_below_plain_streaming(stream_ms: float, draft_ms: float, rtt_ms: float) -> None:
    schedule = schedule_for(replace(COSTS, stream_ms=stream_ms, draft_ms=draft_ms, rtt_ms=rtt_ms))
    assert schedule.rate >= 1 / stream_ms
    if schedule.streams:
        assert schedule.rate == 1 / stream_ms


@pytest.mark.parametrize("rtt_ms", [1.0, 64.0, 512.0])
def test_the_cloud_streams_where_drafting_is_slower(rtt_ms: float) -> None:
    # A span is one forward of the cloud, as a streamed token is, and each of its tokens takes longer to draft.
    costs = replace(COSTS, draft_ms=128.0, read_base_ms=31.0, read_token_ms=1.0, stream_ms=32.0, rtt_ms=rtt_ms)
    assert schedule_for(costs).streams


def test_streaming_replaces_exactly_the_schedules_that_deliver_too_little() -> None:
    costs = replace(COSTS, stream_ms=128.0)
    promise = schedule_for(costs)
    assert not promise.streams
    even = 1 / (promise.rate * costs.stream_ms)  # the share at which both are as fast
    assert promise.delivering(1.01 * even, costs) == promise
    lost = promise.delivering(0.99 * even, costs)
    assert lost.streams
    assert lost.cloud_writes_on
    assert lost.rate == 1 / costs.stream_ms


def test_where_drafting_is_cheap_and_right_the_cloud_does_not_stream() -> None:
    schedule = schedule_for(replace(COSTS, draft_ms=8.0, risk=1 / 64, stream_ms=128.0))
    assert not schedule.streams
    assert schedule.rate > 3 / 128


WORSE = {
    "draft_ms": [4.0, 8.0, 16.0, 32.0, 64.0, 128.0],
    "rtt_ms": [1.0, 16.0, 64.0, 256.0, 1024.0],
    "read_base_ms": [16.0, 64.0, 128.0, 512.0],
    "read_token_ms": [0.0, 1.0, 4.0, 16.0],
    "risk": [1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 2],
}


@pytest.mark.parametrize("stream_ms", [256.0, NEVER])
@pytest.mark.parametrize("name", WORSE)
def test_the_rate_falls_with_every_rising_cost(name: str, stream_ms: float) -> None:
    costs = replace(COSTS, stream_ms=stream_ms)
    rates = [schedule_for(replace(costs, **{name: value})).rate for value in WORSE[name]]
    assert all(worse <= better * 1.004 for better, worse in itertools.pairwise(rates)), (
        "within the precision of the solver"
    )
    assert rates[-1] < 0.95 * rates[0]


def test_the_rate_rises_with_foresight_and_with_branch_length() -> None:
    costs = replace(COSTS, rtt_ms=256.0, risk=1 / 8)
    shares = [schedule_for(replace(costs, foresight=share)).rate for share in (0.0, 1 / 4, 1 / 2, 1.0)]
    assert shares == sorted(shares)
    assert shares[-1] > 1.02 * shares[0]
    tokens = [schedule_for(replace(costs, foresight=1.0, branch_tokens=count)).rate for count in (1.0, 4.0, 8.0)]
    assert tokens == sorted(tokens)


@pytest.mark.parametrize("stream_ms", [256.0, NEVER])
def test_doubling_all_times_halves_the_rate(stream_ms: float) -> None:
    costs = replace(COSTS, stream_ms=stream_ms)
    names = ("draft_ms", "row_ms", "rtt_ms", "read_base_ms", "read_token_ms", "stream_ms")
    slower = replace(costs, **{name: 2 * getattr(costs, name) for name in names})
    assert schedule_for(slower).rate == pytest.approx(schedule_for(costs).rate / 2, rel=0.01)


def test_takeovers_until_the_next_span_help_on_long_links() -> None:
    far = replace(COSTS, rtt_ms=1024.0, read_base_ms=64.0, read_token_ms=0.5, stream_ms=64.0)
    silent, helped = schedule_for(replace(far, stream_ms=NEVER)), schedule_for(far)
    assert (silent.cloud_writes_on, helped.cloud_writes_on) == (False, True)
    assert helped.rate > max(1.1 * silent.rate, 1 / 64)
    near = schedule_for(replace(far, rtt_ms=64.0))
    assert not near.cloud_writes_on


@pytest.mark.parametrize("zero", ["rtt_ms", "read_token_ms", "foresight", "branch_tokens", "risk"])
def test_costs_of_zero_give_a_finite_rate(zero: str) -> None:
    rate = schedule_for(replace(COSTS, stream_ms=256.0, **{zero: 0.0})).rate
    assert math.isfinite(rate)
    assert rate >= 1 / 256

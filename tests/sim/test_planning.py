"""The adaptive planner, end to end in virtual time: the text is always the cloud's, and fast."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.costs import CloudCosts, Curve, DraftCosts
from benchmarks.simulation.scenario import Scenario, Simulation, simulate
from benchmarks.simulation.strategy import Strategy, strategy_for
from benchmarks.simulation.trace import Trace
from chaperone_common.frames import Draft
from chaperone_common.types import Mode, Origin
from edge_client.gate import Always, Threshold
from edge_client.planner import AdaptivePlanner, Estimates, FixedPlanner
from link_emulator.profile import DirectionProfile, OutageProfile, Profile, RandomOutages, ResetProfile
from tests.support.benchmarks.traces import LOST, trace_of

EXACT, CLOUD = strategy_for(Mode.EXACT), strategy_for(Mode.CLOUD)
CLOUD_READ_MS = Curve.of((1, 100), (32, 162))  # 2 ms a token


def scenario(*, rtt_ms: float = 100.0, draft_ms: float = 10.0, branches: int = 3) -> Scenario:
    costs = DraftCosts(step_ms=draft_ms, branches=branches)
    return Scenario(Profile.fixed(rtt_ms), CloudCosts(read_ms=CLOUD_READ_MS, prefill_ms=10), costs)


def accustomed(trace: Trace, place: Scenario, strategy: Strategy = EXACT, *, generations: int = 3) -> Simulation:
    """Simulate a generation of a client that has made a few similar ones."""
    estimates = Estimates()
    for _ in range(generations):
        simulate(trace, place, strategy, estimates)
    return simulate(trace, place, strategy, estimates)


def decode_ms(simulation: Simulation) -> float:
    assert simulation.error is None
    assert simulation.stats.decode_ms is not None
    return simulation.stats.decode_ms


# --- The text --------------------------------------------------------------------------------------------------------

LINKS = st.builds(
    lambda delay_ms, jitter, loss, resets: Profile(
        description="drawn",
        up=DirectionProfile(delay_ms=delay_ms, jitter_ms=jitter * delay_ms, loss=loss),
        down=DirectionProfile(delay_ms=delay_ms, jitter_ms=jitter * delay_ms),
        resets=ResetProfile(at_s=resets),
    ),
    st.floats(0, 200),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.2]),
    st.lists(st.floats(0, 3).map(lambda moment: round(moment, 3)), max_size=3).map(sorted).map(tuple),
)


@settings(max_examples=60)
@given(
    pattern=st.text("+-", min_size=1, max_size=40),
    ended=st.booleans(),
    profile=LINKS,
    seed=st.integers(0, 5),
    draft_ms=st.sampled_from([1.0, 10.0, 40.0, 300.0]),
    branches=st.integers(0, 3),
    read_ms=st.sampled_from([5.0, 50.0, 400.0]),
    warm_start=st.booleans(),
    generations=st.integers(0, 1),
)
def test_the_exact_text_is_the_clouds_for_all_decisions(
    pattern: str,
    ended: bool,
    profile: Profile,
    seed: int,
    draft_ms: float,
    branches: int,
    read_ms: float,
    warm_start: bool,
    generations: int,
) -> None:
    trace = trace_of(pattern, ended=ended)
    cloud = CloudCosts(read_ms=Curve.of((1, read_ms), (32, 1.6 * read_ms)), prefill_ms=10)
    place = Scenario(profile, cloud, DraftCosts(step_ms=draft_ms, branches=branches), seed, warm_start)
    simulation = accustomed(trace, place, generations=generations)
    assert simulation.error is None
    assert simulation.token_ids == trace.token_ids


def test_the_same_arguments_give_the_same_generation() -> None:
    trace = trace_of("+++-++" * 8)
    assert simulate(trace, scenario(), EXACT) == simulate(trace, scenario(), EXACT)


# --- Branches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rtt_ms", [20.0, 100.0, 300.0])
def test_a_foreseen_override_costs_less(rtt_ms: float) -> None:
    trace = trace_of("+++++++-" * 12)  # at a wrong token, the runner-up is right and the signal unsure
    foreseeing = accustomed(trace, scenario(rtt_ms=rtt_ms))
    blind = accustomed(trace, scenario(rtt_ms=rtt_ms, branches=0))
    assert foreseeing.token_ids == blind.token_ids == trace.token_ids
    assert decode_ms(foreseeing) < 0.95 * decode_ms(blind)


def test_branches_cost_little_where_no_override_can_be_foreseen() -> None:
    trace = trace_of("+++++++-" * 12)
    wrong = {index for index, agrees in enumerate(trace.matches) if not agrees}
    proposals = [replace(own, runner_up=999) if at in wrong else own for at, own in enumerate(trace.proposals)]
    unlike = replace(trace, proposals=tuple(proposals))
    assert decode_ms(accustomed(unlike, scenario())) < 1.1 * decode_ms(accustomed(unlike, scenario(branches=0)))


# --- Compared with streaming and with fixed settings -----------------------------------------------------------------


@pytest.mark.parametrize("rtt_ms", [10.0, 200.0])
@pytest.mark.parametrize("pattern", ["+" * 96, "++-" * 32])
def test_a_device_slower_than_the_cloud_streams(rtt_ms: float, pattern: str) -> None:
    trace, place = trace_of(pattern), scenario(rtt_ms=rtt_ms, draft_ms=400.0)
    assert decode_ms(accustomed(trace, place)) <= 1.03 * decode_ms(simulate(trace, place, CLOUD))


def test_a_rarely_right_draft_is_close_to_streaming() -> None:
    trace, place = trace_of("-" * 96, wrong=LOST), scenario(rtt_ms=200.0, draft_ms=20.0)
    assert decode_ms(accustomed(trace, place)) <= 1.15 * decode_ms(simulate(trace, place, CLOUD))


@pytest.mark.parametrize(("rtt_ms", "times"), [(10.0, 3.0), (100.0, 2.5), (300.0, 2.0)])
def test_a_mostly_right_draft_is_much_faster_than_streaming(rtt_ms: float, times: float) -> None:
    trace, place = trace_of("+++++++++++-" * 8), scenario(rtt_ms=rtt_ms)
    assert times * decode_ms(accustomed(trace, place)) < decode_ms(simulate(trace, place, CLOUD))


@pytest.mark.parametrize("rtt_ms", [10.0, 100.0, 300.0])
def test_no_fixed_setting_is_better(rtt_ms: float) -> None:
    trace, place = trace_of("++++++++++++++++-+++++++-" * 4), scenario(rtt_ms=rtt_ms)
    fixed = [
        Strategy("fixed", FixedPlanner(Mode.EXACT, span, in_flight, 32), Always)
        for span in (1, 2, 4, 8, 16)
        for in_flight in (1, 2, 4)
    ]
    best_ms = min(decode_ms(simulate(trace, place, strategy)) for strategy in fixed)
    assert decode_ms(accustomed(trace, place)) <= 1.02 * best_ms


# --- Learning --------------------------------------------------------------------------------------------------------


def test_a_client_that_has_generated_before_is_no_slower() -> None:
    trace, place = trace_of("+++++++-" * 12), scenario(rtt_ms=200.0, draft_ms=5.0)
    assert decode_ms(accustomed(trace, place)) <= decode_ms(simulate(trace, place, EXACT))


def test_costs_are_learned_as_they_are() -> None:
    estimates = Estimates()
    trace, place = trace_of("+++++++-" * 12), scenario(rtt_ms=130.0, draft_ms=12.0)
    for _ in range(3):
        simulate(trace, place, EXACT, estimates)
    costs = estimates.costs()
    assert costs.draft_ms == pytest.approx(12.0)
    assert costs.row_ms == pytest.approx(3.0, rel=0.5), "a quarter of a step for the second row, more for further rows"
    assert costs.rtt_ms == pytest.approx(130.0, rel=0.02)
    assert costs.read_ms(8) == pytest.approx(CLOUD_READ_MS.at(9), rel=0.1), "the token before the span is read with it"


def test_a_span_requests_only_needed_choices() -> None:
    simulation = accustomed(trace_of("+" * 96), scenario())
    asked = [moment.event for moment in simulation.timeline if isinstance(moment.event, Draft)]
    fixed = simulate(trace_of("+" * 96), scenario(), Strategy("f", FixedPlanner(Mode.EXACT, 1, 4, 32), Always))
    assert len(asked) < fixed.stats.verified_tokens / 3


# --- Other modes -----------------------------------------------------------------------------------------------------


def test_gated_waits_for_fired_tokens_alone() -> None:
    trace = trace_of("+++++++-" * 6)
    simulation = accustomed(trace, scenario(), strategy_for(Mode.GATED))
    assert simulation.token_ids == trace.token_ids
    assert simulation.stats.deviations == 0
    assert simulation.stats.overridden_tokens == 6
    assert simulation.stats.skipped_tokens >= 36
    assert set(simulation.origins) <= {Origin.DRAFT, Origin.OVERRIDE, Origin.BONUS, Origin.VERIFIED}


def test_gated_sends_no_request_where_the_gate_trusts_the_draft() -> None:
    trace, place = trace_of("+" * 48), scenario()
    simulation = accustomed(trace, place, strategy_for(Mode.GATED))
    assert (simulation.stats.fired, simulation.stats.round_trips) == (0, 0)
    assert decode_ms(simulation) == pytest.approx(48 * place.draft.step_ms)


@pytest.mark.parametrize("rtt_ms", [5.0, 100.0, 400.0])
@pytest.mark.parametrize("draft_ms", [5.0, 20.0, 80.0])
def test_gated_is_exact_if_it_asks_about_everything_at_no_price(rtt_ms: float, draft_ms: float) -> None:
    everything = Strategy("everything", AdaptivePlanner(Mode.GATED, request_price_ms=0.0), Always)
    trace, place = trace_of("+++++++-++-+--+++++" * 5), scenario(rtt_ms=rtt_ms, draft_ms=draft_ms)
    exact, asking = Estimates(), Estimates()
    for _ in range(3):
        expected, simulation = simulate(trace, place, EXACT, exact), simulate(trace, place, everything, asking)
        assert simulation.token_ids == expected.token_ids == trace.token_ids
        assert sent(simulation) == sent(expected), "the same requests at the same times"
        assert decode_ms(simulation) == decode_ms(expected)


def sent(simulation: Simulation) -> list[tuple[float, int, int, int]]:
    """Return when each Draft was sent, its place and its takeover."""
    return [
        (moment.at_ms, frame.start, frame.end, frame.continuation_tokens)
        for moment in simulation.timeline
        if isinstance(frame := moment.event, Draft)
    ]


@pytest.mark.parametrize("text", ["+++++++-" * 12, "++-" * 30, "+" * 96])
@pytest.mark.parametrize("cloud_ms", [5.0, 40.0, 300.0])
def test_gated_is_no_slower_than_exact_and_asks_less(text: str, cloud_ms: float) -> None:
    cloud = CloudCosts(read_ms=Curve.of((1, cloud_ms), (64, 2 * cloud_ms)), prefill_ms=cloud_ms / 10)
    place = Scenario(Profile.fixed(60.0), cloud, DraftCosts(step_ms=20))
    trace = trace_of(text)
    exact = accustomed(trace, place)
    gated = accustomed(trace, place, Strategy("gated", AdaptivePlanner(Mode.GATED), partial(Threshold, 0.3)))
    assert gated.token_ids == trace.token_ids
    assert decode_ms(gated) <= 1.03 * decode_ms(exact)  # one short text varies by more than the mean of several
    assert len(sent(gated)) <= len(sent(exact))


def test_a_client_without_its_cloud_continues_alone() -> None:
    gone = Profile(
        description="a moment of service before an outage of hours",
        up=DirectionProfile(),
        down=DirectionProfile(),
        outages=OutageProfile(random=RandomOutages(mean_interval_s=0.3, mean_lasts_s=50_000)),
    )
    strategy = replace(EXACT, continue_without_cloud=True)
    trace = trace_of("+++-" * 40)
    simulation = simulate(trace, replace(scenario(), profile=gone, warm_start=False), strategy)
    assert simulation.error is None
    assert len(simulation.token_ids) == len(trace.token_ids)
    judged = simulation.origins.index(Origin.UNVERIFIED)
    assert judged > 0, "the first tokens were judged"
    assert simulation.token_ids[:judged] == trace.token_ids[:judged]
    assert set(simulation.origins[judged:]) == {Origin.UNVERIFIED}


def test_a_client_with_wrong_costs_takes_back_a_takeover() -> None:
    estimates = Estimates()
    for _ in range(20):  # as after a quick cloud and a busy device
        estimates.read(1, 10.0)
        estimates.streamed(10.0, 10.0)
        estimates.drafted(1, 50.0)
    cloud = CloudCosts(read_ms=Curve.of((1, 300), (32, 364)), prefill_ms=1)
    place = Scenario(Profile.fixed(20.0), cloud, DraftCosts(step_ms=5))
    trace = trace_of("+++++++++++++++++++-" * 10)
    surprised = simulate(trace, place, EXACT, estimates)
    assert decode_ms(surprised) < 3 * decode_ms(accustomed(trace, place))

"""Whole generations in virtual time, compared with results computed by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.costs import CloudCosts, Curve, DraftCosts
from benchmarks.simulation.scenario import Follower, Scenario, Simulation, simulate
from benchmarks.simulation.script import Script
from benchmarks.simulation.strategy import Strategy, strategy_for
from chaperone_common.frames import Draft
from chaperone_common.session import Committed, Drafted
from chaperone_common.types import FinishReason, Mode, Origin, Signal
from edge_client.gate import Always, Threshold
from edge_client.planner import AdaptivePlanner, Estimates, FixedPlanner
from link_emulator.profile import DirectionProfile, OutageProfile, PeriodicOutages, Profile, ResetProfile
from tests.support.benchmarks.traces import EOS, SURE, trace_of

SIGNAL = Signal(1.0, 0.5, 0.1, 1.0, 0.5)

# A forward takes 50 ms in the cloud and 10 ms on the device, and the round trip 100 ms.
SCENARIO = Scenario(
    Profile.fixed(100),
    CloudCosts(read_ms=Curve.of((1, 50)), prefill_ms=10),
    DraftCosts(step_ms=10, chunk=Curve.of((1, 1))),
)


def exact(
    span_tokens: int = 2, spans_in_flight: int = 1, run_ahead_tokens: int = 2, takeover_tokens: int = 0
) -> Strategy:
    planner = FixedPlanner(Mode.EXACT, span_tokens, spans_in_flight, run_ahead_tokens, takeover_tokens)
    return Strategy("exact", planner, Always)


def commits(simulation: Simulation) -> list[tuple[float, int, Origin]]:
    """Return the commit time of each token since the warm start."""
    stats = simulation.stats
    assert stats.decode_ms is not None
    warm_ms = stats.total_ms - stats.decode_ms
    return [
        (round(moment.at_ms - warm_ms, 6), moment.event.token_id, moment.event.origin)
        for moment in simulation.timeline
        if isinstance(moment.event, Committed)
    ]


def test_streaming_is_one_round_trip_and_then_a_token_a_forward() -> None:
    simulation = simulate(trace_of("+-+-"), SCENARIO, strategy_for(Mode.CLOUD))
    times = [100.0 + 50 * count for count in (1, 2, 3, 4)]
    assert [row[:2] for row in commits(simulation)] == list(zip(times, [100, 101, 102, 103], strict=True))
    assert simulation.stats.decode_ms == pytest.approx(300)
    assert simulation.stats.prefill_ms == pytest.approx(30), "the prompt without its last token"
    assert simulation.stats.total_ms == pytest.approx(100 + 30 + 300)
    assert simulation.stats.cloud_compute_ms == pytest.approx(30 + 200)
    assert simulation.stats.round_trips == 1


def test_an_accepted_span_of_two_costs_a_round_trip_and_brings_a_bonus() -> None:
    simulation = simulate(trace_of("+++"), SCENARIO, exact())
    assert commits(simulation) == [
        (170.0, 100, Origin.VERIFIED),
        (170.0, 101, Origin.VERIFIED),
        (170.0, 102, Origin.BONUS),
    ]
    assert simulation.stats.finish_reason is FinishReason.LENGTH


def test_an_override_ends_the_span_and_drafting_continues_after_it() -> None:
    simulation = simulate(trace_of("+-++++"), SCENARIO, exact())
    assert commits(simulation) == [
        (170.0, 100, Origin.VERIFIED),
        (170.0, 101, Origin.OVERRIDE),
        (340.0, 102, Origin.VERIFIED),
        (340.0, 103, Origin.VERIFIED),
        (340.0, 104, Origin.BONUS),
        (500.0, 105, Origin.VERIFIED),
    ]
    assert simulation.stats.overridden_tokens == 1


def test_running_ahead_keeps_the_cloud_busy() -> None:
    ahead = simulate(trace_of("+" * 12), SCENARIO, exact(2, 8, 12))
    waiting = simulate(trace_of("+" * 12), SCENARIO, exact())
    assert ahead.token_ids == waiting.token_ids == tuple(range(100, 112))
    assert ahead.stats.decode_ms is not None
    assert waiting.stats.decode_ms is not None
    # Spans leave at 20, 40, 60, ...; the cloud is the slowest part and verifies one in 50 ms, six in a row.
    assert ahead.stats.decode_ms == pytest.approx(20 + 100 + 6 * 50)
    assert ahead.stats.decode_ms < waiting.stats.decode_ms


def test_a_cold_start_drafts_while_the_cloud_reads_the_prompt() -> None:
    cold = simulate(trace_of("+++"), replace(SCENARIO, warm_start=False), exact())
    # Two drafts (20 ms) and half a round trip (70) end before the prompt's 30 ms (80); then one forward follows.
    assert cold.stats.decode_ms is None
    assert cold.stats.total_ms == pytest.approx(50 + 30 + 50 + 50)
    assert cold.stats.ttft_ms == pytest.approx(10)


def test_the_gate_skips_trusted_tokens_and_the_audit_counts_deviations() -> None:
    gated = Strategy("gated", FixedPlanner(Mode.GATED, 1, 2, 8), partial(Threshold, 0.5))
    trusting = simulate(trace_of("+-++", wrong=SURE), SCENARIO, gated)
    assert trusting.token_ids == (100, 201, 102, 103)
    assert trusting.stats.decode_ms == pytest.approx(40), "no request was sent"
    assert (trusting.stats.deviations, trusting.stats.audited_tokens) == (1, 4)
    asking = simulate(trace_of("+-++"), SCENARIO, gated)
    assert asking.token_ids == (100, 101, 102, 103)
    assert asking.stats.deviations == 0
    assert asking.stats.fired == 1


def test_the_cloud_writes_on_after_an_override_where_a_request_takes_longer() -> None:
    """Over a satellite, another request takes longer than a few tokens of a fast cloud."""
    trace = trace_of(("---" + 9 * "+") * 12)
    scenario = Scenario(Profile.fixed(600.0), CloudCosts(read_ms=Curve.of((1, 40.0), (16, 42.0))))
    written = simulate(trace, scenario, Strategy("gated", AdaptivePlanner(Mode.GATED), partial(Threshold, 0.4)))
    assert written.error is None
    assert written.token_ids == trace.token_ids
    assert written.stats.takeover_tokens >= 5
    assert written.stats.deviations == 0


def test_the_edge_alone_sends_nothing() -> None:
    simulation = simulate(trace_of("+-++"), SCENARIO, strategy_for(Mode.EDGE))
    assert simulation.token_ids == (100, 201, 102, 103)
    assert (simulation.link_bytes_up, simulation.link_bytes_down) == (0, 0)
    assert simulation.stats.decode_ms == pytest.approx(40)


def test_other_devices_slow_the_cloud_without_changing_its_text() -> None:
    trace = trace_of("++-+" * 16)
    crowded = replace(SCENARIO, cloud=replace(SCENARIO.cloud, load=0.6, other_ms=200))
    alone, among_background = simulate(trace, SCENARIO, exact()), simulate(trace, crowded, exact())
    assert alone.token_ids == among_background.token_ids == trace.token_ids
    assert alone.stats.cloud_queue_ms == 0
    assert among_background.stats.cloud_queue_ms > 1000
    assert among_background.stats.cloud_compute_ms == pytest.approx(alone.stats.cloud_compute_ms)


def test_a_generation_that_meets_end_of_text_stops_there() -> None:
    simulation = simulate(trace_of("+-+", ended=True), SCENARIO, exact(4, 2, 8))
    assert simulation.token_ids == (100, 101, EOS)
    assert simulation.stats.finish_reason is FinishReason.STOP


def test_the_same_arguments_give_the_same_generation() -> None:
    trace = trace_of("+++-" * 8)
    profile = Profile(
        description="a link that draws",
        up=DirectionProfile(delay_ms=30, jitter_ms=10, loss=0.1),
        down=DirectionProfile(delay_ms=30, jitter_ms=10, loss=0.1),
    )
    one, same, other = (simulate(trace, replace(SCENARIO, profile=profile, seed=seed), exact()) for seed in (1, 1, 2))
    assert one == same
    assert one.stats.decode_ms != other.stats.decode_ms


RESETS = st.lists(st.floats(0, 3).map(lambda moment: round(moment, 3)), max_size=4).map(sorted).map(tuple)
LINKS = st.builds(
    lambda delay_ms, jitter, loss, outage, resets: Profile(
        description="drawn",
        up=DirectionProfile(delay_ms=delay_ms, jitter_ms=jitter * delay_ms, loss=loss),
        down=DirectionProfile(delay_ms=delay_ms, jitter_ms=jitter * delay_ms, rate_kbit_s=100),
        outages=OutageProfile(periodic=outage),
        resets=ResetProfile(at_s=resets),
    ),
    st.floats(0, 150),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([None, PeriodicOutages(every_s=1.0, lasts_s=0.3), PeriodicOutages(every_s=0.5, lasts_s=0.4)]),
    RESETS,
)


@settings(max_examples=60)
@given(
    pattern=st.text("+-", min_size=1, max_size=40),
    ended=st.booleans(),
    profile=LINKS,
    seed=st.integers(0, 5),
    spans=st.tuples(st.integers(1, 8), st.integers(1, 4), st.integers(1, 24)),
    takeover_tokens=st.sampled_from([0, 3]),
)
def test_the_exact_text_is_the_clouds_over_any_link(
    pattern: str,
    ended: bool,
    profile: Profile,
    seed: int,
    spans: tuple[int, int, int],
    takeover_tokens: int,
) -> None:
    trace = trace_of(pattern, ended=ended)
    strategy = exact(*spans, takeover_tokens)
    scenario = replace(SCENARIO, profile=profile, seed=seed, warm_start=False)
    simulation = simulate(trace, scenario, strategy)
    assert simulation.error is None
    assert simulation.token_ids == trace.token_ids
    assert simulate(trace, scenario, strategy_for(Mode.CLOUD)).token_ids == trace.token_ids


@settings(max_examples=60)
@given(
    pattern=st.text("+-?", min_size=1, max_size=40),
    spans=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 24)),
    rtt_ms=st.floats(0, 200),
)
def test_the_audit_counts_every_skipped_token_that_deviates(
    pattern: str, spans: tuple[int, int, int], rtt_ms: float
) -> None:
    wrong = trace_of(pattern.replace("?", "-"))
    sure = trace_of(pattern.replace("?", "-"), wrong=SURE)
    proposals = [(sure if sign == "?" else wrong).proposals[index] for index, sign in enumerate(pattern)]
    trace = replace(wrong, proposals=tuple(proposals))
    strategy = Strategy("gated", FixedPlanner(Mode.GATED, *spans), partial(Threshold, 0.5))
    simulation = simulate(trace, replace(SCENARIO, profile=Profile.fixed(rtt_ms)), strategy)
    assert simulation.error is None
    assert len(simulation.token_ids) == len(trace.token_ids)
    deviations = [ours != clouds for ours, clouds in zip(simulation.token_ids, trace.token_ids, strict=True)]
    assert simulation.stats.deviations == sum(deviations)
    assert all(pattern[index] == "?" for index, deviates in enumerate(deviations) if deviates)


def test_the_timeline_has_events_and_frames_in_order() -> None:
    simulation = simulate(trace_of("+-+"), SCENARIO, exact())
    warm_ms = 130.0
    timeline = [(round(moment.at_ms - warm_ms, 6), type(moment.event).__name__) for moment in simulation.timeline]
    assert timeline[:3] == [(-130.0, "Open"), (-30.0, "Opened"), (0.0, "Opened")]
    assert timeline[3:10] == [
        (10.0, "Drafted"),
        (20.0, "Drafted"),
        (20.0, "Draft"),
        (170.0, "Verdict"),
        (170.0, "Committed"),
        (170.0, "Retracted"),
        (170.0, "Committed"),
    ]
    assert [name for _, name in timeline[-3:]] == ["Close", "Closed", "Finished"]


def test_a_client_that_knows_prefill_times_sends_no_short_span_during_a_prefill() -> None:
    trace = trace_of("+" * 32, prompt_tokens=100)
    scenario = Scenario(Profile.fixed(50.0), CloudCosts(prefill_ms=40.0), DraftCosts(step_ms=20), warm_start=False)
    estimates = Estimates()
    first, second = (simulate(trace, scenario, strategy_for(Mode.EXACT), estimates) for _ in range(2))
    spans = [
        [len(moment.event.token_ids) for moment in simulation.timeline if isinstance(moment.event, Draft)]
        for simulation in (first, second)
    ]
    assert len(spans[0]) > 1
    assert spans[1] == [32], "the whole text was drafted before the prompt was read"
    assert second.stats.total_ms < first.stats.total_ms


def test_the_models_keep_skipped_and_final_tokens_but_no_fired_ones() -> None:
    """An adopted branch adds several tokens at once, so each event must say if its token fired."""
    kept: set[int] = set()

    class Kept(Script):
        def keep(self, position: int) -> None:
            kept.add(position)

    follower = Follower(Kept(trace_of("++++")))
    for position, fired in ((3, True), (4, False), (5, True)):
        follower.follow(Drafted(position, 1, SIGNAL, fired))
    assert kept == {4}
    follower.follow(Committed(3, 1, Origin.VERIFIED))
    assert kept == {3, 4}

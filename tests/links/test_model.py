"""The link's model on a virtual clock: order, rate, delay, loss, outages, freezing, and equal draws for equal seeds."""

from __future__ import annotations

import ast
import statistics
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import link_emulator
from link_emulator.model import DELAYED_ACK_S, MAX_PIECE_BYTES, Direction, Link
from link_emulator.profile import (
    DirectionProfile,
    OutageProfile,
    PeriodicOutages,
    Profile,
    RandomOutages,
    ResetProfile,
)
from link_emulator.timeline import Outages, Resets

JITTERS = ("normal", "exponential", "pareto")
EVENTS = st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 20_000), st.integers(0, 2)), min_size=1, max_size=60)


def profile_of(way: DirectionProfile, **others: object) -> Profile:
    return Profile(description="test", up=way, down=way).model_copy(update=others)


def direction(way: DirectionProfile, seed: int = 0, **others: object) -> Direction:
    return Direction(profile_of(way, **others), "up", seed)


@st.composite
def ways(draw: st.DrawFn) -> DirectionProfile:
    delay_ms = draw(st.floats(0, 300))
    speed: dict[str, object] = draw(
        st.sampled_from(({}, {"rate_kbit_s": 50.0}, {"rate_kbit_s": 8000.0}, {"trace": (0, 3, 3, 10)}))
    )
    return DirectionProfile.model_validate(
        {
            "delay_ms": delay_ms,
            "jitter_ms": draw(st.floats(0, 1)) * delay_ms,
            "jitter": draw(st.sampled_from(JITTERS)),
            "loss": draw(st.sampled_from((0.0, 0.05, 0.5))),
            **speed,
        }
    )


OUTAGES = st.sampled_from(
    (
        OutageProfile(),
        OutageProfile(periodic=PeriodicOutages(every_s=1.0, lasts_s=0.3)),
        OutageProfile(
            periodic=PeriodicOutages(every_s=2.0, lasts_s=0.3),
            random=RandomOutages(mean_interval_s=0.5, mean_lasts_s=0.2),
        ),
    )
)


# --- Invariants -------------------------------------------------------------------------------------------------------


@given(ways(), OUTAGES, EVENTS, st.integers(0, 2**32))
def test_a_seed_decides_everything(
    way: DirectionProfile, outages: OutageProfile, events: list[tuple[float, int, int]], seed: int
) -> None:
    first, second = (direction(way, seed, outages=outages) for _ in range(2))
    now_s = 0.0
    for gap_s, size, flow in events:
        now_s += gap_s
        assert first.room_at(now_s, size) == second.room_at(now_s, size)
        assert first.arrival(now_s, size, flow) == second.arrival(now_s, size, flow)


@given(ways(), OUTAGES, EVENTS, st.integers(0, 2**32))
def test_a_flow_keeps_its_order_and_nothing_is_early(
    way: DirectionProfile, outages: OutageProfile, events: list[tuple[float, int, int]], seed: int
) -> None:
    link = direction(way, seed, outages=outages)
    now_s, last = 0.0, dict.fromkeys(range(3), 0.0)
    for gap_s, size, flow in events:
        now_s += gap_s
        arrival_s = link.arrival(now_s, size, flow)
        assert arrival_s >= last[flow]
        assert arrival_s >= now_s - 1e-9
        last[flow] = arrival_s


@given(EVENTS, st.sampled_from((50.0, 8000.0)), st.floats(0, 200))
def test_never_faster_than_the_rate_and_the_delay(
    events: list[tuple[float, int, int]], rate_kbit_s: float, delay_ms: float
) -> None:
    link = direction(DirectionProfile(delay_ms=delay_ms, rate_kbit_s=rate_kbit_s))
    profile = Profile(description="test")
    now_s, free_s = 0.0, 0.0
    for gap_s, size, flow in events:
        now_s += gap_s
        free_s = max(now_s, free_s) + profile.wire_bytes(size) / (rate_kbit_s * 125)
        assert link.arrival(now_s, size, flow) == pytest.approx(free_s + delay_ms / 1e3)


@given(EVENTS, st.integers(0, 2**32))
def test_nothing_is_sent_in_an_outage(events: list[tuple[float, int, int]], seed: int) -> None:
    profile = OutageProfile(
        periodic=PeriodicOutages(every_s=2.0, lasts_s=0.3), random=RandomOutages(mean_interval_s=0.5, mean_lasts_s=0.2)
    )
    link, outages = direction(DirectionProfile(), seed, outages=profile), Outages(profile, seed)
    now_s = 0.0
    for gap_s, size, flow in events:
        now_s += gap_s
        assert link.arrival(now_s, size, flow) == outages.up_at(now_s)


@given(EVENTS, st.floats(4, 40))
def test_a_source_that_waits_for_room_never_overfills_the_queue(
    events: list[tuple[float, int, int]], queue_kbytes: float
) -> None:
    link = direction(DirectionProfile(rate_kbit_s=800, queue_kbytes=queue_kbytes))
    profile = Profile(description="test")
    now_s, queued = 0.0, list[tuple[float, int]]()
    for gap_s, size, _ in events:
        now_s = link.room_at(now_s + gap_s, size)
        queued = [(sent_s, waiting) for sent_s, waiting in queued if sent_s > now_s]
        if queued:
            assert sum(waiting for _, waiting in queued) + profile.wire_bytes(size) <= queue_kbytes * 1000
        queued.append((link.arrival(now_s, size), profile.wire_bytes(size)))


def test_waiting_for_room_does_not_change_when_bytes_come_out() -> None:
    way = DirectionProfile(delay_ms=20, rate_kbit_s=400, queue_kbytes=4)
    patient, pushy = direction(way), direction(way)
    now_s, waited = 0.0, 0
    for _ in range(40):
        expected_s = pushy.arrival(0.0, 1448)
        room_s = patient.room_at(now_s, 1448)
        waited += room_s > now_s
        now_s = room_s
        assert patient.arrival(now_s, 1448) == pytest.approx(expected_s)
    assert waited > 30


# --- Knobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", JITTERS)
def test_delay_and_jitter_are_mean_and_deviation(jitter: str) -> None:
    way = DirectionProfile.model_validate({"delay_ms": 50.0, "jitter_ms": 10.0, "jitter": jitter})
    link = direction(way, seed=5)
    delays_ms = [(link.arrival(n * 10.0, 100) - n * 10.0) * 1e3 for n in range(20_000)]
    assert statistics.mean(delays_ms) == pytest.approx(50.0, abs=0.4)
    assert statistics.stdev(delays_ms) == pytest.approx(10.0, rel=0.1)
    assert min(delays_ms) >= 0.0


def test_a_control_segment_costs_a_header_and_a_piece_one_per_segment() -> None:
    profile = Profile(description="test")
    assert [profile.wire_bytes(size) for size in (0, 1, 1448, 1449)] == [52, 53, 1500, 1553]
    link = direction(DirectionProfile())
    link.arrival(0.0, 0)
    link.arrival(0.0, 1449)
    assert (link.payload_bytes, link.wire_bytes) == (1449, 52 + 1553)


@pytest.mark.parametrize(
    ("way", "pieces"),
    [
        (DirectionProfile(), MAX_PIECE_BYTES),
        (DirectionProfile(rate_kbit_s=50), 1448),
        (DirectionProfile(rate_kbit_s=120_000), 10 * 1448),  # 15,000 bytes a millisecond
        (DirectionProfile(trace=(1,)), 1448),
    ],
)
def test_a_piece_holds_the_bytes_of_a_millisecond(way: DirectionProfile, pieces: int) -> None:
    assert direction(way).piece_bytes == pieces


def test_a_lone_lost_segment_waits_for_the_tail_probe_and_all_after_it_wait_too() -> None:
    way = DirectionProfile(delay_ms=50, loss=0.5)
    for seed in range(50):
        link = direction(way, seed)
        first_s, second_s, other_s = link.arrival(0.0, 100), link.arrival(0.001, 100), link.arrival(0.001, 100, flow=1)
        if first_s == pytest.approx(0.05 + 2 * 0.1 + DELAYED_ACK_S) and other_s == pytest.approx(0.051):
            assert second_s >= first_s
            return
    pytest.fail("no seed loses just the first segment")


def test_the_share_of_stalled_messages_is_the_loss() -> None:
    link = direction(DirectionProfile(delay_ms=10, loss=0.1), seed=2)
    stalled = sum(link.arrival(n * 1000.0, 100) > n * 1000.0 + 0.011 for n in range(5000))
    assert stalled / 5000 == pytest.approx(0.1, abs=0.015)


def test_a_loss_in_bulk_costs_one_round_trip() -> None:
    way = DirectionProfile(delay_ms=50, rate_kbit_s=10_000, loss=0.005)
    link = direction(way, seed=3)
    lossless = direction(way.model_copy(update={"loss": 0.0}))
    waits_s = [link.arrival(0.0, 1448) - lossless.arrival(0.0, 1448) for _ in range(3000)]
    jumps = [after for before, after in pairwise(waits_s) if after > before + 0.001]
    assert len(jumps) >= 3
    assert sum(jump == pytest.approx(0.1) for jump in jumps) >= len(jumps) - 1  # a retransmission may be lost, too


def test_a_trace_is_served_at_its_opportunities_for_ever() -> None:
    link = direction(DirectionProfile(trace=(2, 5, 5, 10)))
    full = [round(link.arrival(0.0, 1448) * 1e3, 6) for _ in range(6)]
    assert full == [2, 5, 5, 10, 12, 15]
    assert link.arrival(1.0, 1448) == pytest.approx(1.0)  # the last of a cycle is at its period
    assert link.arrival(1.001, 10) == pytest.approx(1.002)
    assert link.arrival(1.001, 10) == pytest.approx(1.002)  # the rest of an opportunity serves bytes that waited for it
    assert link.arrival(1.0025, 10) == pytest.approx(1.005)  # but not later bytes


def test_a_trace_in_step_with_outages_is_still_served() -> None:
    outages = OutageProfile(periodic=PeriodicOutages(every_s=0.1, lasts_s=0.0999))
    link = direction(DirectionProfile(trace=(100,)), outages=outages)
    assert link.arrival(0.0, 100) < 3600.0


def test_a_piece_is_sent_around_an_outage() -> None:
    outages = OutageProfile(periodic=PeriodicOutages(every_s=10.0, lasts_s=2.0))
    begin_s, end_s = Outages(outages, 0).after(0.0)
    link = direction(DirectionProfile(rate_kbit_s=8), outages=outages)  # a byte a millisecond
    assert link.arrival(begin_s - 0.5, 948) == pytest.approx(end_s + 0.5)


# --- Outages and resets -----------------------------------------------------------------------------------------------


def test_both_directions_are_out_together() -> None:
    outages = OutageProfile(random=RandomOutages(mean_interval_s=1.0, mean_lasts_s=1.0))
    link = Link(profile_of(DirectionProfile(), outages=outages), seed=4)
    times = [n / 50 for n in range(500)]
    up = [link.up.arrival(time_s, 1) for time_s in times]
    assert up == [link.down.arrival(time_s, 1) for time_s in times]
    assert 100 < sum(arrival_s > time_s for arrival_s, time_s in zip(up, times, strict=True)) < 400


def test_periodic_outages_keep_their_period_and_the_seed_draws_the_phase() -> None:
    profile = OutageProfile(periodic=PeriodicOutages(every_s=10.0, lasts_s=2.0))
    phases = set()
    for seed in range(5):
        outages = Outages(profile, seed)
        first = outages.after(0.0)
        second = outages.after(first[1])
        assert first[0] < 10.0
        assert second == pytest.approx((first[0] + 10.0, first[1] + 10.0))
        assert first[1] - first[0] == pytest.approx(2.0)
        phases.add(first[0])
    assert len(phases) == 5


def test_resets_come_as_scheduled_and_at_random() -> None:
    assert Resets(ResetProfile(), 0).next_after(0.0) == float("inf")
    scheduled = Resets(ResetProfile(at_s=(1.0, 5.0)), 0)
    assert [scheduled.next_after(time_s) for time_s in (0.0, 1.0, 5.0)] == [1.0, 5.0, float("inf")]
    poisson = Resets(ResetProfile(mean_interval_s=3.0), 7)
    times = [0.0]
    while times[-1] < 30_000:
        times.append(poisson.next_after(times[-1]))
    assert len(times) == pytest.approx(10_000, rel=0.05)


@given(EVENTS, st.floats(0, 1), st.floats(0.001, 3))
def test_a_freeze_delays_bytes_in_flight_and_later_ones(
    events: list[tuple[float, int, int]], when_s: float, lasts_s: float
) -> None:
    way = DirectionProfile(delay_ms=100, rate_kbit_s=100)
    frozen, running = direction(way), direction(way)
    for _, size, flow in events:
        frozen.arrival(0.0, size, flow)
        running.arrival(0.0, size, flow)
    assert frozen.freeze(when_s, when_s + lasts_s) == pytest.approx(lasts_s)
    later_s = when_s + lasts_s
    assert frozen.arrival(later_s, 100) == pytest.approx(running.arrival(when_s, 100) + lasts_s)
    assert frozen.freeze(later_s, when_s) == 0.0


def test_a_freeze_within_another_only_prolongs_it() -> None:
    link = direction(DirectionProfile())
    assert link.freeze(0.0, 5.0) == 5.0
    assert link.freeze(1.0, 4.0) == 0.0
    assert link.arrival(1.0, 10) == 5.0
    assert link.freeze(2.0, 7.0) == 2.0
    assert link.arrival(2.0, 10) == 7.0


# --- Edges ------------------------------------------------------------------------------------------------------------


def test_time_does_not_run_backwards() -> None:
    link = direction(DirectionProfile())
    link.arrival(1.0, 10)
    with pytest.raises(ValueError, match="now_s: 0.5 comes after 1.0"):
        link.arrival(0.5, 10)


def test_a_trace_must_be_loaded() -> None:
    with pytest.raises(ValueError, match="up.trace: 'mine.trace' was not read"):
        Link(profile_of(DirectionProfile(trace="mine.trace")))


def test_turning_one_knob_leaves_the_other_draws_alone() -> None:
    way = DirectionProfile(delay_ms=50, jitter_ms=10)
    plain, lossy = direction(way, 9), direction(way.model_copy(update={"loss": 0.01}), 9)
    pairs = [(plain.arrival(n * 100.0, 10), lossy.arrival(n * 100.0, 10)) for n in range(200)]
    assert sum(one == other for one, other in pairs) > 180


def test_any_source_of_uniform_draws_works() -> None:
    """`random.Random` satisfies the protocol of the model's draws, too."""
    from link_emulator.timeline import exponential

    assert statistics.mean(exponential(Random(n), 2.0) for n in range(2000)) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("module", ["model", "profile", "timeline"])
def test_the_model_has_no_clock_and_no_sockets(module: str) -> None:
    tree = ast.parse((Path(link_emulator.__file__).parent / f"{module}.py").read_bytes())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"asyncio", "time", "datetime", "random", "socket", "os", "threading", "link_emulator.alarm"}

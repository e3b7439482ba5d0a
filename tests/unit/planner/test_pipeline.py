"""Spans in flight: the expected times of answers, and the estimates from received answers."""

from __future__ import annotations

import pytest

from chaperone_common.frames import Closed, Continuation, Opened, Verdict
from chaperone_common.planning.schedule import schedule_for
from chaperone_common.types import Mode
from edge_client.planner import Costs, Estimates, Pipeline

RTT_MS = 100.0
READ_MS = 40.0  # of any span
STREAM_MS = 30.0
READY = Opened(prefilled=True, context_tokens=512)


def known() -> Estimates:
    estimates = Estimates()
    for index in range(60):
        estimates.travelled(RTT_MS)
        estimates.read(1 + index % 30, READ_MS)
        estimates.streamed(STREAM_MS, STREAM_MS)
    return estimates


def ready(estimates: Estimates | None = None, now_ms: float = 0.0, mode: Mode = Mode.EXACT) -> Pipeline:
    """Return a pipeline whose cloud holds the prompt since `now_ms`."""
    pipeline = Pipeline(estimates or known(), mode)
    pipeline.opened(now_ms - 500.0)
    pipeline.answered(READY, now_ms)
    return pipeline


def verdict(cloud_ms: float = READ_MS, queue_ms: float = 0.0, *, position: int = 5) -> Verdict:
    return Verdict(0, position, 9, queue_us=round(queue_ms * 1e3), compute_us=round(cloud_ms * 1e3))


def about(value: float) -> object:
    return pytest.approx(value, abs=3.0)


# --- Waiting times of spans -------------------------------------------------------------------------------------------


def test_a_span_to_an_idle_cloud_does_not_wait() -> None:
    assert ready().wait_ms(0.0) == 0.0
    assert ready().wait_ms(5000.0) == 0.0


def test_a_span_waits_for_the_one_before_it_and_less_as_time_goes_by() -> None:
    pipeline = ready()
    pipeline.sent(4, 1000.0)
    assert pipeline.wait_ms(1000.0) == about(READ_MS)
    assert pipeline.wait_ms(1000.0 + READ_MS / 2) == about(READ_MS / 2)
    assert pipeline.wait_ms(1000.0 + READ_MS + 10) == 0.0, "it arrives when the other span is read, and not before"


def test_spans_are_read_one_after_the_other() -> None:
    pipeline = ready()
    for _ in range(3):
        pipeline.sent(4, 1000.0)
    assert pipeline.wait_ms(1000.0) == about(3 * READ_MS)


def test_spans_sent_far_apart_do_not_wait_for_each_other() -> None:
    pipeline = ready()
    pipeline.sent(4, 1000.0)
    pipeline.sent(4, 1000.0 + 3 * READ_MS)
    assert pipeline.wait_ms(1000.0 + 3 * READ_MS) == about(READ_MS)


def test_a_takeover_by_a_span_in_flight_begins_at_its_arrival() -> None:
    pipeline = ready()
    pipeline.sent(4, 1000.0)
    answered_ms = 1000.0 + RTT_MS + READ_MS
    pipeline.sent(4, answered_ms - 10.0)
    pipeline.answered(verdict(), answered_ms)
    pipeline.keep(0, begins_takeover=True)
    assert pipeline.written_by(answered_ms) == 0, "the cloud has not received it yet"
    assert pipeline.written_by(answered_ms + RTT_MS) == about(RTT_MS / STREAM_MS)
    at_once = ready()
    at_once.sent(4, 1000.0)
    at_once.sent(4, answered_ms - 10.0)
    at_once.answered(verdict(), answered_ms)
    at_once.keep(0)
    assert at_once.written_by(answered_ms) == int(RTT_MS / STREAM_MS)


def test_a_late_answer_delays_the_next_span_without_known_forward_times() -> None:
    guessed, prior = ready(Estimates()), Costs()
    guessed.sent(4, 1000.0)
    due_ms = 1000.0 + prior.rtt_ms + prior.read_ms(4)
    assert guessed.wait_ms(due_ms) == 0.0
    assert guessed.wait_ms(due_ms + 300.0) == 300.0 - prior.rtt_ms, "as late again"
    measured = ready()
    measured.sent(4, 1000.0)
    assert measured.wait_ms(due_ms + 300.0) == 0.0, "a stalled link delivers everything at once"


@pytest.mark.parametrize("late_ms", [-30.0, 200.0])
def test_an_early_or_late_answer_shifts_later_ones(late_ms: float) -> None:
    pipeline = ready()
    pipeline.sent(4, 1000.0)
    pipeline.sent(4, 1000.0)
    came_ms = 1000.0 + RTT_MS + READ_MS + late_ms
    pipeline.answered(verdict(), came_ms)
    # The second is answered one reading after the first; a span sent now takes a round trip, and may wait for the rest.
    still_ms = max(came_ms, 1000.0 + RTT_MS) + READ_MS - came_ms
    assert pipeline.wait_ms(came_ms) == about(max(0.0, still_ms - RTT_MS))
    probe_ms = came_ms + still_ms - RTT_MS - 20  # 20 ms too early to be read at once
    assert pipeline.wait_ms(probe_ms) == about(20)


def test_spans_voided_by_an_override_are_no_longer_waited_for() -> None:
    pipeline = ready()
    for _ in range(3):
        pipeline.sent(4, 1000.0)
    pipeline.keep(1)
    assert pipeline.wait_ms(1000.0) == about(READ_MS)
    pipeline.keep(0)
    assert pipeline.wait_ms(1000.0) == 0.0


def test_keeping_more_than_there_are_keeps_all() -> None:
    pipeline = ready()
    pipeline.sent(4, 1000.0)
    pipeline.keep(5)
    assert pipeline.wait_ms(1000.0) == about(READ_MS)


def test_a_new_stream_has_no_spans_in_flight() -> None:
    pipeline = ready()
    for _ in range(5):
        pipeline.sent(4, 1000.0)
    pipeline.opened(1001.0)
    assert pipeline.wait_ms(1001.0) == 0.0


# --- Estimates of the link --------------------------------------------------------------------------------------------


def test_the_round_trip_is_the_time_of_a_lone_span_without_the_clouds_own() -> None:
    pipeline = ready(Estimates())
    pipeline.sent(4, 1000.0)
    pipeline.answered(verdict(cloud_ms=40, queue_ms=25), 1000.0 + 65 + 77)
    assert pipeline.estimates.costs().rtt_ms == pytest.approx(77)


def test_a_span_after_another_updates_no_link_estimate() -> None:
    pipeline = ready(Estimates())
    pipeline.sent(4, 1000.0)
    pipeline.sent(4, 1001.0)
    pipeline.answered(verdict(), 1000.0 + READ_MS + 77)
    pipeline.answered(verdict(), 1000.0 + 2 * READ_MS + 300)
    pipeline.sent(4, 2000.0)
    pipeline.answered(verdict(), 2000.0 + READ_MS + 79)
    assert pipeline.estimates.costs().rtt_ms == pytest.approx(77), "the lower of the first and the third"


def test_a_span_that_waited_for_the_prompt_updates_no_link_estimate() -> None:
    estimates = Estimates()
    pipeline = Pipeline(estimates)
    pipeline.opened(0.0)
    pipeline.sent(4, 10.0)
    pipeline.answered(READY, 4000.0)
    pipeline.answered(verdict(), 4100.0)
    assert estimates.costs().rtt_ms == Costs().rtt_ms


def test_the_first_answer_to_an_open_updates_the_round_trip() -> None:
    pipeline = Pipeline(Estimates())
    pipeline.opened(500.0)
    pipeline.answered(Opened(prefilled=False, context_tokens=512), 583.0)
    assert pipeline.estimates.costs().rtt_ms == pytest.approx(83)


def test_a_round_trip_is_never_negative() -> None:
    pipeline = ready(Estimates())
    pipeline.sent(4, 1000.0)
    pipeline.answered(verdict(cloud_ms=90), 1050.0)  # the clocks of two machines differ
    assert pipeline.estimates.costs().rtt_ms == 0.0


# --- While the prompt is read -----------------------------------------------------------------------------------------


def read_prompts(*prompts: tuple[int, float]) -> Estimates:
    estimates = known()
    for tokens, elapsed_ms in prompts:
        estimates.prefilled(tokens, elapsed_ms)
    return estimates


def test_a_span_waits_for_the_prompt_by_past_prefill_times() -> None:
    pipeline = Pipeline(read_prompts((100, 1000.0), (200, 2000.0), (100, 1000.0)))
    pipeline.opened(500.0, prompt_tokens=150)
    assert pipeline.wait_ms(500.0) == pytest.approx(1500.0, rel=0.1)
    assert pipeline.wait_ms(1000.0) == pytest.approx(1000.0, rel=0.15)
    pipeline.answered(READY, 1200.0)
    assert pipeline.wait_ms(1200.0) == 0.0, "it took less"


def test_a_span_sent_before_the_prefill_ends_is_read_after_it() -> None:
    pipeline = Pipeline(read_prompts((100, 1000.0)))
    pipeline.opened(0.0, prompt_tokens=100)
    for _ in range(3):
        pipeline.sent(4, 10.0)
    assert pipeline.wait_ms(10.0) == about(990.0 + 3 * READ_MS)
    pipeline.answered(READY, 2000.0)
    assert pipeline.wait_ms(2000.0) == about(3 * READ_MS - RTT_MS), "it took longer"


@pytest.mark.parametrize("prompt_tokens", [0, 100])
def test_unknown_prefill_times_cause_no_wait(prompt_tokens: int) -> None:
    """A reopened session causes no wait either, since the cloud may still have the KV of its prompt."""
    pipeline = Pipeline(read_prompts((100, 1000.0)) if not prompt_tokens else known())
    pipeline.opened(0.0, prompt_tokens)
    assert pipeline.wait_ms(0.0) == 0.0


def test_a_prefill_updates_the_estimate_unless_the_session_was_reopened() -> None:
    pipeline = Pipeline(Estimates())
    pipeline.opened(0.0, prompt_tokens=100)
    pipeline.answered(Opened(True, 512, queue_us=100_000, compute_us=700_000), 900.0)
    assert pipeline.estimates.prefill_ms(100) == pytest.approx(800.0)
    pipeline.opened(1000.0)
    pipeline.answered(Opened(True, 512, compute_us=1000), 1100.0)
    assert pipeline.estimates.prefill_ms(100) == pytest.approx(800.0)


# --- Estimates of the cloud -------------------------------------------------------------------------------------------


def test_forwards_update_base_and_slope_including_the_queue_time() -> None:
    pipeline = ready(Estimates())
    for index in range(60):
        tokens = 1 + index % 16
        pipeline.sent(tokens, 1000.0 * index)
        pipeline.answered(verdict(cloud_ms=50 + 2 * tokens, queue_ms=30), 1000.0 * index + 200)
    assert pipeline.estimates.costs().read_ms(8) == pytest.approx(80 + 16, rel=0.05)


def test_a_cloud_without_reported_times_updates_no_estimate() -> None:
    pipeline = ready(Estimates())
    pipeline.sent(4, 1000.0)
    pipeline.answered(verdict(cloud_ms=0), 1200.0)
    assert pipeline.estimates.costs().read_ms(4) == Costs().read_ms(4)


def test_the_pace_of_a_takeover_is_the_time_between_its_tokens() -> None:
    pipeline = ready(Estimates())
    pipeline.sent(4, 1000.0)
    pipeline.answered(verdict(), 1200.0)
    for count in (1, 2, 3):
        pipeline.answered(Continuation(5 + count, (8,), handed_back=False), 1200.0 + 35 * count)
    assert pipeline.estimates.costs().stream_ms == pytest.approx(35)


def test_bunched_tokens_took_at_least_the_clouds_reported_time() -> None:
    pipeline = ready(Estimates())
    pipeline.sent(4, 1000.0)
    pipeline.answered(verdict(), 1200.0)
    pipeline.answered(Continuation(6, (8,), handed_back=False, compute_us=30_000), 1203.0)
    assert pipeline.estimates.costs().stream_ms == pytest.approx(30)


def test_tokens_delayed_by_the_link_do_not_slow_the_clouds_pace() -> None:
    pipeline = ready(Estimates())
    pipeline.sent(4, 1000.0)
    pipeline.answered(verdict(), 1200.0)
    for count in range(1, 31):  # three tokens at a time
        came_ms = 1200.0 + 90 * -(-count // 3)
        pipeline.answered(Continuation(5 + count, (8,), handed_back=False, compute_us=30_000), came_ms)
    assert pipeline.estimates.costs().stream_ms == pytest.approx(30)


def test_a_link_slower_than_the_cloud_sets_the_pace() -> None:
    pipeline = ready(Estimates())
    pipeline.sent(4, 1000.0)
    pipeline.answered(verdict(), 1200.0)
    for count in range(1, 10):
        frame = Continuation(5 + count, (8,), handed_back=False, compute_us=10_000)
        pipeline.answered(frame, 1200.0 + 45 * count)
    assert pipeline.estimates.costs().stream_ms == pytest.approx(45)


def test_an_empty_hand_back_updates_no_pace() -> None:
    pipeline = ready(Estimates())
    pipeline.sent(4, 1000.0)
    pipeline.answered(verdict(), 1200.0)
    before = pipeline.estimates.costs().stream_ms
    pipeline.answered(Continuation(6, (), handed_back=True), 1900.0)
    assert pipeline.estimates.costs().stream_ms == before


def test_other_frames_and_unexpected_answers_are_ignored() -> None:
    pipeline = ready()
    pipeline.answered(Closed(), 10.0)
    pipeline.answered(verdict(), 20.0)
    assert pipeline.wait_ms(20.0) == 0.0


# --- The promise of the long view -------------------------------------------------------------------------------------


def after_answers_every(elapsed_ms: float, mode: Mode = Mode.EXACT) -> Pipeline:
    """Return a pipeline after answers at this interval, with five settled tokens each."""
    pipeline = ready(mode=mode)
    for count in range(1, 13):
        now_ms = elapsed_ms * count
        pipeline.sent(4, now_ms - RTT_MS)
        pipeline.answered(verdict(position=5 * count), now_ms)
    return pipeline


def test_answers_slower_than_promised_lower_the_delivery() -> None:
    quick, slow = after_answers_every(30.0), after_answers_every(400.0)
    assert not schedule_for(slow.estimates.costs()).streams
    assert quick.estimates.delivery == 1.0, "more than the promise counts as the promise"
    assert slow.estimates.delivery < 0.7


def test_modes_with_skipped_tokens_do_not_update_the_delivery() -> None:
    assert after_answers_every(400.0, Mode.GATED).estimates.delivery == 1.0


def test_the_first_answer_and_takeovers_do_not_update_the_delivery() -> None:
    pipeline = ready()
    pipeline.sent(4, 9000.0)
    pipeline.answered(verdict(), 9999.0)
    for count in range(1, 40):
        pipeline.answered(Continuation(5 + count, (8,), handed_back=False), 9999.0 + 900.0 * count)
    assert pipeline.estimates.delivery == 1.0


# --- Tokens written by a takeover -------------------------------------------------------------------------------------


def test_tokens_written_until_a_span_arrives() -> None:
    pipeline = ready()
    pipeline.sent(4, 1000.0)
    pipeline.answered(verdict(), 1200.0)
    assert pipeline.written_by(1200.0) == int(RTT_MS / STREAM_MS)
    assert pipeline.written_by(1200.0 + 2 * STREAM_MS) == int(RTT_MS / STREAM_MS) + 2
    pipeline.answered(Continuation(6, (8,), handed_back=False, compute_us=30_000), 1200.0 + STREAM_MS)
    assert pipeline.written_by(1200.0 + STREAM_MS) == int(RTT_MS / STREAM_MS)


def test_the_number_of_written_tokens_is_never_negative() -> None:
    """Another generation of the client may lower the estimated round trip while this one waits."""
    pipeline = ready()
    pipeline.sent(0, 1000.0)
    for _ in range(20):
        pipeline.estimates.travelled(1.0)
    assert pipeline.written_by(1000.0) == 0


def test_tokens_of_one_frame_share_its_reported_time() -> None:
    pipeline = ready(Estimates())
    pipeline.sent(0, 0.0)
    pipeline.answered(verdict(), 100.0)
    for count in range(1, 20):
        frame = Continuation(2 + 4 * count, (8,) * 4, handed_back=False, compute_us=160_000)
        pipeline.answered(frame, 100.0 + 160.0 * count)
    assert pipeline.estimates.costs().stream_ms == pytest.approx(40.0)


def test_a_takeover_begins_with_no_written_tokens() -> None:
    pipeline = ready()
    pipeline.sent(0, 1000.0)
    assert pipeline.written_by(1000.0) == 0
    assert pipeline.written_by(1000.0 + 4 * STREAM_MS + 1) == 4

"""The adaptive planner in takeovers: when the cloud writes, and when the device takes over again."""

from __future__ import annotations

from edge_client.planner import CatchUp, DraftToken, HandOver, Send, Wait
from tests.support.device.planner import PROMPT, PlannerHarness, known


def test_a_cloud_faster_than_the_device_is_left_to_write() -> None:
    harness = PlannerHarness(known(draft_ms=200, read_ms=20, token_ms=1, stream_ms=20))
    action = harness.decide().action
    assert isinstance(action, HandOver)
    assert action.tokens == harness.session.limit - len(harness.session.text)


def test_nothing_is_handed_over_while_the_prompt_is_being_read() -> None:
    harness = PlannerHarness(known(draft_ms=200, read_ms=20, token_ms=1, stream_ms=20))
    harness.session.prefilled = False
    assert not isinstance(harness.decide().action, HandOver)


def test_a_device_that_drafts_faster_hands_no_text_over() -> None:
    assert PlannerHarness(known(draft_ms=5, read_ms=300)).decide().action == DraftToken()


def test_a_broken_promise_does_not_stop_the_cloud_from_writing() -> None:
    def harness(*, delivered: float) -> PlannerHarness:
        estimates = known(draft_ms=20, read_ms=40, stream_ms=40, rtt_ms=20, risk=0.1)
        for _ in range(200):
            estimates.delivered(1, 1 / delivered)
        return PlannerHarness(estimates)

    assert harness(delivered=1.0).decide().action == DraftToken()
    assert isinstance(harness(delivered=0.5).decide().action, HandOver)


def test_a_takeover_is_taken_back_once_the_draft_is_ahead() -> None:
    harness = PlannerHarness(known(draft_ms=10, read_ms=100, stream_ms=100)).taken_over()
    for _ in range(100):
        action = harness.decide().action
        if isinstance(action, Send):
            break
        assert action == DraftToken()
        harness.drafted(0.05).later(10)
    assert isinstance(action, Send)
    assert action.tokens in (None, len(harness.session.text) - harness.session.sent_length)
    assert len(harness.session.text) - harness.session.final_length > 2, "more than the cloud wrote in that time"


def test_a_draft_barely_ahead_does_not_interrupt_the_cloud() -> None:
    harness = PlannerHarness(known(draft_ms=20, read_ms=100, stream_ms=25)).taken_over().drafted(0.2)
    assert not isinstance(harness.decide().action, Send)


def test_a_draft_ahead_but_likely_wrong_does_not_interrupt_the_cloud() -> None:
    harness = PlannerHarness(known(draft_ms=5, rtt_ms=10, read_ms=100, stream_ms=100)).taken_over()
    assert not isinstance(harness.drafted(*[0.9] * 8).decide().action, Send)


def test_a_device_that_cannot_get_ahead_only_reads_in_chunks() -> None:
    harness = PlannerHarness(known(draft_ms=40, read_ms=30, stream_ms=30)).taken_over()
    assert harness.written(2, each_ms=30).decide().action == Wait(), "two tokens are not worth a forward"
    for _ in range(30):
        match harness.written(1, each_ms=30).decide().action:
            case CatchUp():
                assert len(harness.session.text) - harness.read > 4
                harness.read = len(harness.session.text)
            case action:
                assert action == Wait()


def test_a_device_with_too_much_to_read_waits_for_the_end_of_a_takeover() -> None:
    """Only the device's read tokens differ; each token of a chunk takes a third of a draft's time."""
    harness = PlannerHarness(known(draft_ms=30, rtt_ms=10, read_ms=100, stream_ms=100, risk=0.01), limit=61)
    harness.taken_over().written(52, each_ms=100)
    harness.read = len(harness.session.text) - 1
    assert harness.decide().action == DraftToken()
    harness.read = len(PROMPT)
    assert harness.decide().action == Wait()


def test_the_planner_waits_while_the_cloud_writes_the_last_tokens() -> None:
    harness = PlannerHarness(known(draft_ms=5, stream_ms=10), limit=8).taken_over()
    assert harness.decide().action == Wait()


def test_an_idle_device_always_reads_along_with_a_takeover() -> None:
    """The proposals there measure the device's acceptance, and so the moment for a take-back."""
    harness = PlannerHarness(known(draft_ms=10, stream_ms=100, rtt_ms=800, risk=0.9)).taken_over()
    harness.read = len(harness.session.text)
    assert harness.decide().action == Wait()
    harness.written(1, each_ms=100)
    assert harness.decide().action == CatchUp()


def test_no_branch_is_drafted_without_a_site_even_if_rows_are_free() -> None:
    harness = PlannerHarness(known(row_ms=0.0, token_ms=0.0, risk=0.01)).drafted(0.01)
    assert harness.decide().action == DraftToken()

"""A stream is lost, and the device opens a new one: tokens that are kept, reported and sent again."""

from __future__ import annotations

import pytest

from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Continuation, Draft, Opened, Verdict
from chaperone_common.types import Origin
from tests.support.session.device import OPEN, PROMPT, committed, fire, lose, session, skip


def test_reopening_keeps_provisional_tokens_and_sends_them_again() -> None:
    device = session()
    fire(device, 1, 2)
    device.send(continuation_tokens=4)
    fire(device, 3)
    lose(device)
    assert device.reopen() == OPEN
    assert (device.text, device.final_length, device.sent_length, device.read_length) == ([7, 8, 9, 1, 2, 3], 3, 3, 3)
    assert (device.revision, len(device.spans), device.prefilled, device.unsent_fires) == (0, 0, False, 3)
    device.apply(Opened(prefilled=True, context_tokens=100))
    assert device.send() == Draft(0, 3, (1, 2, 3), (), 3)
    assert committed(device.apply(Verdict(0, 6, 4)))[-1] == (6, 4, Origin.BONUS)
    assert (device.tally.fired, device.tally.requests, device.tally.reconnects) == (3, 1, 1)


def test_reopening_reports_the_read_tokens_and_the_next_draft_audits_the_rest() -> None:
    device = session(committed=(4,))
    fire(device, 1)
    device.send()
    device.apply(Verdict(0, 5, 2))
    skip(device, 3, 6)
    fire(device, 5)
    device.send()
    lose(device)
    opening = device.reopen()
    assert opening.committed_token_ids == (4, 1, 2), "tokens of an earlier generation, and tokens read since"
    assert opening.prompt_token_ids == PROMPT
    assert (device.sent_length, device.final_length) == (6, 8)
    frame = device.send()
    assert (frame.start, frame.token_ids, frame.final_before) == (6, (3, 6, 5), 8)
    device.apply(Verdict(0, 9, 1, (7,)))
    assert (device.tally.audited_tokens, device.tally.deviations, device.tally.skipped_tokens) == (2, 1, 2)


def test_tokens_skipped_after_a_fire_are_judged_with_it_after_a_loss() -> None:
    device = session()
    fire(device, 1)
    device.send()
    skip(device, 2, 3)
    device.send()
    lose(device)
    device.reopen()
    assert device.unsent_fires == 3
    assert device.send() == Draft(0, 3, (1, 2, 3), (0.5, 0.0, 0.0), 3)


def test_provisional_tokens_of_a_takeover_are_judged_after_its_cut() -> None:
    device = session()
    device.send(continuation_tokens=9)
    device.apply(Verdict(0, 3, 5))
    assert committed(skip(device, 6)) == [], "the cloud may write something else"
    frame = device.send()
    assert (frame.token_ids, frame.final_before) == ((6,), 4), "a draft that takes back a takeover is judged"
    assert committed(skip(device, 7)) == []
    lose(device)
    device.reopen()
    assert device.stranded
    assert device.send() == Draft(0, 4, (6, 7), (0.0, 0.0), 4)


def test_tokens_in_flight_are_judged_again_after_a_loss() -> None:
    """Skipped tokens after sent fires, too: they are not final before a judgement."""
    device = session()
    fire(device, 1)
    device.send()
    fire(device, 2, 3)
    skip(device, 4)
    device.send()
    device.apply(Verdict(0, 4, 2))  # the bonus confirms the 2, and the others are in flight
    assert (device.final_length, device.unsent_fires) == (5, 0)
    lose(device)
    assert device.reopen().committed_token_ids == (1, 2)
    assert device.unsent_fires == 2
    assert committed(skip(device, 5)) == []
    assert device.send() == Draft(0, 5, (3, 4, 5), (0.5, 0.0, 0.0), 5)


@pytest.mark.parametrize("handed_back", [False, True])
def test_an_interrupted_takeover_is_over(handed_back: bool) -> None:
    device = session()
    device.send(continuation_tokens=9)
    device.apply(Verdict(0, 3, 5))
    device.apply(Continuation(4, (6, 7), handed_back=handed_back))
    lose(device)
    assert device.reopen().committed_token_ids == (5, 6, 7)
    assert not device.following
    assert device.send(continuation_tokens=6) == Draft(0, 6, (), (), 6, 6)


def test_a_stream_on_which_the_cloud_never_answered_is_no_reconnect() -> None:
    device = session()
    for _ in range(3):
        lose(device)
        device.reopen()
    device.apply(Opened(prefilled=False, context_tokens=100))
    device.apply(Opened(prefilled=True, context_tokens=100))
    assert device.tally.reconnects == 1


def test_only_a_lost_stream_is_reopened_and_only_while_there_is_something_to_write() -> None:
    device = session()
    with pytest.raises(ProtocolViolation, match="Open of the same session on a new stream is not allowed"):
        device.reopen()
    skip(device, 1)
    device.finish_at(4)
    device.close()
    lose(device)
    with pytest.raises(ProtocolViolation, match="reopen: the text has ended at 4"):
        device.reopen()

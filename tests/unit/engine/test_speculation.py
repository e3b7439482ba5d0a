"""Model and draft tree in step with the text, above a model without a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.frames import Continuation, Open, Verdict
from chaperone_common.session import Committed, DeviceSession, Drafted, Retracted
from chaperone_common.types import Origin, SamplingParams, SessionId
from edge_client.engine.speculation import Speculation
from edge_client.planner import Estimates
from tests.support.device.speculation import PROMPT, START, SpeculationHarness, drafted, greedy, second
from tests.support.fakes.clock import ManualClock


def test_each_draft_token_takes_one_forward() -> None:
    harness = drafted(4)
    harness.check()
    assert harness.model.steps == 4
    assert len(harness.text) == START + 4


# --- Overrides -------------------------------------------------------------------------------------------------------


def test_a_foreseen_override_adopts_its_branch_without_a_step() -> None:
    harness = drafted(4)
    at = START + 1
    wanted = second(harness.text[:at])
    harness.branch(at, tokens=3)
    steps = harness.model.steps
    harness.override(at, wanted)
    assert len(harness.text) == at + 1 + 3
    assert harness.model.steps == steps
    harness.check()
    assert [event for event in harness.events if isinstance(event, Retracted)] == [Retracted(at)]
    assert [event.position for event in harness.events if isinstance(event, Drafted)][-3:] == [at + 1, at + 2, at + 3]
    harness.draft()
    assert harness.model.steps == steps + 1, "and its rows are the text's"
    harness.check()
    assert harness.estimates.costs().foresight > Estimates().costs().foresight


def test_text_and_branch_share_a_forward() -> None:
    harness = drafted(2)
    steps = harness.model.steps
    harness.draft(3, branches=(START,))
    assert harness.model.steps == steps + 3
    assert len(harness.text) == START + 5
    harness.override(START, second(harness.text[:START]))
    assert len(harness.text) == START + 1 + 3
    harness.check()


def test_an_unforeseen_override_is_drafted_after_again() -> None:
    harness = drafted(4)
    at = START + 1
    harness.branch(at, tokens=2)
    foreign = next(token for token in range(16) if token not in (harness.text[at], second(harness.text[:at])))
    steps = harness.model.steps
    harness.override(at, foreign)
    assert len(harness.text) == at + 1
    assert harness.speculation.tree.branches == {}
    harness.draft(3)
    assert harness.model.steps == steps + 3
    harness.check()


def test_an_override_where_no_branch_began_is_drafted_after_again() -> None:
    harness = drafted(4)
    harness.branch(START + 2)
    harness.override(START, second(harness.text[:START]))
    assert len(harness.text) == START + 1
    harness.draft(2)
    harness.check()


def test_agreement_keeps_later_branches() -> None:
    harness = drafted(2)
    harness.draft(2)
    at = START + 3
    harness.branch(at, tokens=2)
    harness.receive(Verdict(0, START + 2, harness.text[START + 2]))
    assert set(harness.speculation.tree.branches) == {at}
    harness.send()
    harness.override(at, second(harness.text[:at]))
    assert len(harness.text) == at + 1 + 2
    harness.check()


def test_a_second_branch_continues_from_its_fork() -> None:
    harness = drafted(4)
    harness.branch(START, tokens=2)
    harness.branch(START + 2, tokens=1)
    harness.branch(START, tokens=1)
    harness.override(START, second(harness.text[:START]))
    assert len(harness.text) == START + 1 + 3
    harness.check()


def test_a_displaced_branch_is_not_adopted() -> None:
    harness = drafted(4, branches=1)
    harness.branch(START, tokens=2)
    harness.branch(START + 1, tokens=2)
    harness.override(START, second(harness.text[:START]))
    assert len(harness.text) == START + 1
    harness.draft(2)
    harness.check()


def test_cut_text_is_dropped_with_its_proposals() -> None:
    harness = drafted(6)
    harness.override(START, second(harness.text[:START]))
    assert harness.speculation.fed_length <= START + 1
    assert harness.speculation.tree.proposal(START + 1) is None
    harness.draft(2)
    harness.check()


def test_an_override_voids_spans_in_flight() -> None:
    harness = drafted(3)
    harness.draft(3)
    harness.send()
    harness.branch(START + 1, tokens=2)
    harness.override(START + 1, second(harness.text[: START + 1]))
    assert not harness.session.spans
    assert len(harness.text) == START + 2 + 2
    harness.check()


# --- Ends ------------------------------------------------------------------------------------------------------------


def test_end_of_text_in_a_branch_ends_the_text() -> None:
    at, eos = _branch_that_ends()
    harness = drafted(4, eos=(eos,))
    harness.branch(at, tokens=1)
    assert at not in {start for _, start in harness.speculation.tree.sites()}, "nothing follows"
    harness.override(at, second(harness.text[:at]))
    assert harness.text[-1] == eos
    assert harness.session.exhausted
    assert harness.session.finish_reason is None, "only the cloud can end a text"
    harness.check()
    harness.send()
    harness.receive(Verdict(1, len(harness.text) - 1, eos))
    assert harness.session.finish_reason is not None


def _branch_that_ends() -> tuple[int, int]:
    """Return a position, and an end-of-text token that follows its runner-up and is not in the text."""
    text = list(PROMPT)
    for _ in range(4):
        text.append(greedy(text))
    for at in range(START, START + 4):
        eos = greedy([*text[:at], second(text[:at])])
        if eos not in text and eos != second(text[:at]):
            return at, eos
    raise AssertionError("no such position; take another seed")


def test_a_branch_does_not_outgrow_the_text() -> None:
    harness = drafted(4, limit=START + 4)
    harness.branch(START, tokens=3)
    harness.override(START, second(harness.text[:START]))
    assert len(harness.text) == harness.session.limit
    assert harness.session.exhausted
    harness.check()


def test_an_override_that_ends_the_text_leaves_nothing_to_draft() -> None:
    harness = drafted(3, limit=START + 3)
    harness.override(START + 2, second(harness.text[: START + 2]))
    assert harness.session.finish_reason is not None
    assert len(harness.text) == START + 3


# --- Takeovers -------------------------------------------------------------------------------------------------------


def taken_over(*, ahead: int = 0) -> SpeculationHarness:
    """Return a device that has drafted `ahead` tokens while the cloud writes on after its override."""
    harness = SpeculationHarness()
    harness.draft(2)
    harness.send(continuation_tokens=20)
    harness.override(START, second(harness.text[:START]))
    assert harness.session.following
    harness.draft(ahead)
    return harness


def written(harness: SpeculationHarness, *token_ids: int) -> None:
    harness.receive(Continuation(harness.session.final_length, token_ids, handed_back=False))


def test_draft_tokens_that_a_takeover_repeats_stand() -> None:
    harness = taken_over(ahead=4)
    expected = list(harness.text)
    written(harness, *harness.text[START + 1 : START + 3])
    assert harness.text == expected
    assert harness.session.final_length == START + 3
    harness.check()


def test_a_takeover_contradicts_a_draft_that_ran_ahead() -> None:
    harness = taken_over(ahead=4)
    at = START + 2
    foreign = next(token for token in range(16) if token != harness.text[at])
    written(harness, harness.text[START + 1])
    written(harness, foreign)
    assert harness.text[-1] == foreign
    assert len(harness.text) == at + 1
    harness.draft(3)
    harness.check()


def test_a_takeover_past_a_foreseen_token_voids_the_rest_of_the_branch() -> None:
    harness = taken_over(ahead=4)
    at = START + 2
    harness.branch(at, tokens=3)
    wanted = second(harness.text[:at])
    steps = harness.model.steps
    foreign = next(token for token in range(16) if token != greedy([*harness.text[:at], wanted]))
    written(harness, harness.text[START + 1], wanted, foreign)
    assert harness.text[at:] == [wanted, foreign]
    harness.draft(2)
    assert harness.model.steps == steps + 2
    harness.check()


def test_a_takeover_that_writes_a_foreseen_token_finds_its_branch() -> None:
    harness = taken_over(ahead=4)
    at = START + 2
    harness.branch(at, tokens=3)
    steps = harness.model.steps
    written(harness, harness.text[START + 1], second(harness.text[:at]))
    assert len(harness.text) == at + 1 + 3
    assert harness.model.steps == steps
    harness.check()


def test_catching_up_takes_one_forward_and_yields_the_next_draft() -> None:
    harness = taken_over()
    written(harness, 1, 2, 3, 4, 5)
    steps = harness.model.steps
    harness.catch_up()
    assert harness.speculation.fed_length == len(harness.text)
    harness.draft()
    assert harness.model.steps == steps + 1
    harness.check()
    harness.draft(2)
    harness.check()


def test_a_draft_after_a_takeover_catches_up_by_itself() -> None:
    harness = taken_over()
    written(harness, 1, 2, 3, 4, 5)
    steps = harness.model.steps
    harness.draft()
    assert harness.model.steps == steps + 1
    harness.check()


def test_a_proposal_of_an_outdated_catch_up_is_not_drafted() -> None:
    harness = taken_over()
    written(harness, 1, 2, 3)
    harness.catch_up()
    written(harness, 4)
    harness.draft(2)
    harness.check()


def test_proposals_while_catching_up_update_the_acceptance_estimate() -> None:
    agreeing, contradicting = taken_over(), taken_over()
    for harness, agrees in ((agreeing, True), (contradicting, False)):
        for _ in range(10):
            written(harness, 1)
            harness.catch_up()
            own = greedy(harness.text)
            written(harness, own if agrees else (own + 1) % 16)
            harness.catch_up()
    assert agreeing.estimates.risks.corrected(0.2) < contradicting.estimates.risks.corrected(0.2)


def test_proposals_after_a_cut_text_update_no_estimate() -> None:
    read, unread = taken_over(ahead=2), taken_over(ahead=2)
    read.catch_up()
    for harness in (read, unread):
        written(harness, (harness.text[START + 1] + 1) % 16)
        written(harness, 1)
        written(harness, 1)
    assert read.text == unread.text
    assert read.estimates.risks.corrected(0.2) == unread.estimates.risks.corrected(0.2)


# --- Without a model -------------------------------------------------------------------------------------------------


def test_without_a_model_no_rows_are_kept() -> None:
    session = DeviceSession(Open(SessionId("s"), "", SamplingParams(), 57, (), PROMPT), limit=60)
    speculation = Speculation(session, None, Estimates(), ManualClock())
    speculation.follow(Committed(START, 4, Origin.TAKEOVER))
    assert speculation.fed_length == 0
    assert speculation.take_adopted() == []
    assert list(speculation.tree.sites()) == []
    speculation.close()


def test_closing_releases_the_models_rows() -> None:
    harness = drafted(2)
    harness.speculation.close()
    with pytest.raises(RuntimeError, match="closed"):
        harness.draft()


# --- Random events ---------------------------------------------------------------------------------------------------

MOVES = ("draft", "both", "branch", "send", "agree", "foreseen", "foreign", "write", "catch up", "hand back")


def _may(harness: SpeculationHarness, move: str) -> bool:
    session = harness.session
    if session.finish_reason is not None:
        return False
    match move:
        case "draft":
            return not session.exhausted
        case "both" | "branch":
            likely = any(harness.speculation.tree.sites()) and not (move == "both" and session.exhausted)
            return likely and (move == "branch" or harness.speculation.fed_length == len(harness.text) - 1)
        case "send":
            return session.sent_length < len(harness.text) and not session.following
        case "agree" | "foreseen" | "foreign":
            return bool(session.spans)
        case "catch up":
            return harness.speculation.fed_length < len(harness.text)
        case _:
            return session.following and not session.spans


def _make(harness: SpeculationHarness, move: str, draw: Callable[[int], int]) -> None:
    session = harness.session
    match move:
        case "draft":
            harness.draft()
        case "both" | "branch":
            starts = [start for _, start in harness.speculation.tree.sites()]
            harness.draft(text=move == "both", branches=(starts[draw(len(starts))],))
        case "send":
            harness.send(continuation_tokens=draw(2) * 8)
        case "agree":
            end = session.spans[0].end
            harness.receive(Verdict(session.revision, end, harness.text[end] if end < len(harness.text) else draw(16)))
        case "foreseen" | "foreign":
            at = session.spans[0].start + draw(len(session.spans[0].token_ids))
            wanted = second(harness.text[:at]) if move == "foreseen" else (harness.text[at] + 1 + draw(15)) % 16
            harness.override(at, wanted)
        case "write" | "hand back":
            tokens = [(greedy(harness.text[: session.final_length]), draw(16))[draw(2)]]
            tokens += [draw(16) for _ in range(draw(3))]
            harness.receive(Continuation(session.final_length, tuple(tokens), handed_back=move == "hand back"))
        case _:
            harness.catch_up()


@settings(max_examples=150)
@given(data=st.data())
def test_after_any_events_the_text_is_the_models_own(data: st.DataObject) -> None:
    harness = SpeculationHarness(branches=data.draw(st.integers(0, 3)), limit=40, eos=(15,))
    for _ in range(data.draw(st.integers(1, 30))):
        possible = [move for move in MOVES if _may(harness, move)]
        if not possible:
            break
        _make(harness, data.draw(st.sampled_from(possible)), lambda below: data.draw(st.integers(0, below - 1)))
        harness.check()

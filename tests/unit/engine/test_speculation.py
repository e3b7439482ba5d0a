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
from tests.support.supervisor import PROMPT, START, Desk, StillClock, drafted, greedy, second


def test_drafts_are_what_the_model_writes_one_forward_each() -> None:
    desk = drafted(4)
    desk.check()
    assert desk.model.steps == 4
    assert len(desk.text) == START + 4


# --- Overrides -------------------------------------------------------------------------------------------------------


def test_a_foreseen_override_becomes_the_text_with_what_was_drafted_after_it_and_without_a_step() -> None:
    desk = drafted(4)
    at = START + 1
    wanted = second(desk.text[:at])
    desk.branch(at, tokens=3)
    steps = desk.model.steps
    desk.override(at, wanted)
    assert len(desk.text) == at + 1 + 3
    assert desk.model.steps == steps
    desk.check()
    assert [event for event in desk.events if isinstance(event, Retracted)] == [Retracted(at)]
    assert [event.position for event in desk.events if isinstance(event, Drafted)][-3:] == [at + 1, at + 2, at + 3]
    desk.draft()
    assert desk.model.steps == steps + 1, "and its rows are the text's"
    desk.check()
    assert desk.estimates.costs().foresight > Estimates().costs().foresight


def test_text_and_branch_share_a_forward() -> None:
    desk = drafted(2)
    steps = desk.model.steps
    desk.draft(3, branches=(START,))
    assert desk.model.steps == steps + 3
    assert len(desk.text) == START + 5
    desk.override(START, second(desk.text[:START]))
    assert len(desk.text) == START + 1 + 3
    desk.check()


def test_an_unforeseen_override_is_drafted_after_again() -> None:
    desk = drafted(4)
    at = START + 1
    desk.branch(at, tokens=2)
    foreign = next(token for token in range(16) if token not in (desk.text[at], second(desk.text[:at])))
    steps = desk.model.steps
    desk.override(at, foreign)
    assert len(desk.text) == at + 1
    assert desk.speculation.tree.branches == {}
    desk.draft(3)
    assert desk.model.steps == steps + 3
    desk.check()


def test_an_override_where_no_branch_began_is_drafted_after_again() -> None:
    desk = drafted(4)
    desk.branch(START + 2)
    desk.override(START, second(desk.text[:START]))
    assert len(desk.text) == START + 1
    desk.draft(2)
    desk.check()


def test_what_agrees_leaves_branches_after_it_alone() -> None:
    desk = drafted(2)
    desk.draft(2)
    at = START + 3
    desk.branch(at, tokens=2)
    desk.receive(Verdict(0, START + 2, desk.text[START + 2]))
    assert set(desk.speculation.tree.branches) == {at}
    desk.send()
    desk.override(at, second(desk.text[:at]))
    assert len(desk.text) == at + 1 + 2
    desk.check()


def test_a_second_branch_goes_on_where_it_was_forked() -> None:
    desk = drafted(4)
    desk.branch(START, tokens=2)
    desk.branch(START + 2, tokens=1)
    desk.branch(START, tokens=1)
    desk.override(START, second(desk.text[:START]))
    assert len(desk.text) == START + 1 + 3
    desk.check()


def test_a_branch_that_gave_way_is_not_adopted() -> None:
    desk = drafted(4, branches=1)
    desk.branch(START, tokens=2)
    desk.branch(START + 1, tokens=2)
    desk.override(START, second(desk.text[:START]))
    assert len(desk.text) == START + 1
    desk.draft(2)
    desk.check()


def test_text_that_is_cut_is_forgotten_with_what_was_read_of_it() -> None:
    desk = drafted(6)
    desk.override(START, second(desk.text[:START]))
    assert desk.speculation.fed_length <= START + 1
    assert desk.speculation.tree.proposal(START + 1) is None
    desk.draft(2)
    desk.check()


def test_spans_on_their_way_do_not_outlive_an_override() -> None:
    desk = drafted(3)
    desk.draft(3)
    desk.send()
    desk.branch(START + 1, tokens=2)
    desk.override(START + 1, second(desk.text[: START + 1]))
    assert not desk.session.spans
    assert len(desk.text) == START + 2 + 2
    desk.check()


# --- Ends ------------------------------------------------------------------------------------------------------------


def test_end_of_text_in_a_branch_ends_the_text() -> None:
    at, eos = _branch_that_ends()
    desk = drafted(4, eos=(eos,))
    desk.branch(at, tokens=1)
    assert at not in {start for _, start in desk.speculation.tree.sites()}, "nothing follows"
    desk.override(at, second(desk.text[:at]))
    assert desk.text[-1] == eos
    assert desk.session.exhausted
    assert desk.session.finish_reason is None, "only the cloud can end a text"
    desk.check()
    desk.send()
    desk.receive(Verdict(1, len(desk.text) - 1, eos))
    assert desk.session.finish_reason is not None


def _branch_that_ends() -> tuple[int, int]:
    """A position of the text and an end-of-text token that follows its runner-up, and that the text does not hold."""
    text = list(PROMPT)
    for _ in range(4):
        text.append(greedy(text))
    for at in range(START, START + 4):
        eos = greedy([*text[:at], second(text[:at])])
        if eos not in text and eos != second(text[:at]):
            return at, eos
    raise AssertionError("no such position; take another seed")


def test_a_branch_does_not_outgrow_the_text() -> None:
    desk = drafted(4, limit=START + 4)
    desk.branch(START, tokens=3)
    desk.override(START, second(desk.text[:START]))
    assert len(desk.text) == desk.session.limit
    assert desk.session.exhausted
    desk.check()


def test_an_override_that_ends_the_text_leaves_nothing_to_draft() -> None:
    desk = drafted(3, limit=START + 3)
    desk.override(START + 2, second(desk.text[: START + 2]))
    assert desk.session.finish_reason is not None
    assert len(desk.text) == START + 3


# --- Takeovers -------------------------------------------------------------------------------------------------------


def taken_over(*, ahead: int = 0) -> Desk:
    """The cloud has overridden the first token and writes on, and the device has drafted ahead of it."""
    desk = Desk()
    desk.draft(2)
    desk.send(continuation_tokens=20)
    desk.override(START, second(desk.text[:START]))
    assert desk.session.following
    desk.draft(ahead)
    return desk


def written(desk: Desk, *token_ids: int) -> None:
    desk.receive(Continuation(desk.session.final_length, token_ids, handed_back=False))


def test_what_the_cloud_writes_as_drafted_stands() -> None:
    desk = taken_over(ahead=4)
    expected = list(desk.text)
    written(desk, *desk.text[START + 1 : START + 3])
    assert desk.text == expected
    assert desk.session.final_length == START + 3
    desk.check()


def test_a_takeover_contradicts_a_draft_that_ran_ahead() -> None:
    desk = taken_over(ahead=4)
    at = START + 2
    foreign = next(token for token in range(16) if token != desk.text[at])
    written(desk, desk.text[START + 1])
    written(desk, foreign)
    assert desk.text[-1] == foreign
    assert len(desk.text) == at + 1
    desk.draft(3)
    desk.check()


def test_a_takeover_that_goes_on_after_a_foreseen_token_voids_the_rest_of_the_branch() -> None:
    desk = taken_over(ahead=4)
    at = START + 2
    desk.branch(at, tokens=3)
    wanted = second(desk.text[:at])
    steps = desk.model.steps
    foreign = next(token for token in range(16) if token != greedy([*desk.text[:at], wanted]))
    written(desk, desk.text[START + 1], wanted, foreign)
    assert desk.text[at:] == [wanted, foreign]
    desk.draft(2)
    assert desk.model.steps == steps + 2
    desk.check()


def test_a_takeover_that_writes_a_foreseen_token_finds_its_branch() -> None:
    desk = taken_over(ahead=4)
    at = START + 2
    desk.branch(at, tokens=3)
    steps = desk.model.steps
    written(desk, desk.text[START + 1], second(desk.text[:at]))
    assert len(desk.text) == at + 1 + 3
    assert desk.model.steps == steps
    desk.check()


def test_catching_up_reads_all_at_once_and_gives_the_next_draft_for_nothing() -> None:
    desk = taken_over()
    written(desk, 1, 2, 3, 4, 5)
    steps = desk.model.steps
    desk.catch_up()
    assert desk.speculation.fed_length == len(desk.text)
    desk.draft()
    assert desk.model.steps == steps + 1
    desk.check()
    desk.draft(2)
    desk.check()


def test_a_draft_after_a_takeover_catches_up_by_itself() -> None:
    desk = taken_over()
    written(desk, 1, 2, 3, 4, 5)
    steps = desk.model.steps
    desk.draft()
    assert desk.model.steps == steps + 1
    desk.check()


def test_what_was_caught_up_with_before_the_cloud_wrote_on_is_not_drafted_from() -> None:
    desk = taken_over()
    written(desk, 1, 2, 3)
    desk.catch_up()
    written(desk, 4)
    desk.draft(2)
    desk.check()


def test_what_came_to_mind_while_reading_teaches_how_often_the_draft_is_right() -> None:
    agreeing, contradicting = taken_over(), taken_over()
    for desk, agrees in ((agreeing, True), (contradicting, False)):
        for _ in range(10):
            written(desk, 1)
            desk.catch_up()
            own = greedy(desk.text)
            written(desk, own if agrees else (own + 1) % 16)
            desk.catch_up()
    assert agreeing.estimates.risks.corrected(0.2) < contradicting.estimates.risks.corrected(0.2)


def test_what_came_to_mind_after_a_text_that_was_cut_teaches_nothing() -> None:
    read, unread = taken_over(ahead=2), taken_over(ahead=2)
    read.catch_up()
    for desk in (read, unread):
        written(desk, (desk.text[START + 1] + 1) % 16)
        written(desk, 1)
        written(desk, 1)
    assert read.text == unread.text
    assert read.estimates.risks.corrected(0.2) == unread.estimates.risks.corrected(0.2)


# --- Without ---------------------------------------------------------------------------------------------------------


def test_without_a_model_there_is_nothing_to_keep_in_step() -> None:
    session = DeviceSession(Open(SessionId("s"), "", SamplingParams(), 57, (), PROMPT), limit=60)
    speculation = Speculation(session, None, Estimates(), StillClock())
    speculation.follow(Committed(START, 4, Origin.TAKEOVER))
    assert speculation.fed_length == 0
    assert speculation.take_adopted() == []
    assert list(speculation.tree.sites()) == []
    speculation.close()


def test_closing_gives_the_models_rows_back() -> None:
    desk = drafted(2)
    desk.speculation.close()
    with pytest.raises(RuntimeError, match="closed"):
        desk.draft()


# --- Whatever happens ------------------------------------------------------------------------------------------------

MOVES = ("draft", "both", "branch", "send", "agree", "foreseen", "foreign", "write", "catch up", "hand back")


def _may(desk: Desk, move: str) -> bool:
    session = desk.session
    if session.finish_reason is not None:
        return False
    match move:
        case "draft":
            return not session.exhausted
        case "both" | "branch":
            likely = any(desk.speculation.tree.sites()) and not (move == "both" and session.exhausted)
            return likely and (move == "branch" or desk.speculation.fed_length == len(desk.text) - 1)
        case "send":
            return session.sent_length < len(desk.text) and not session.following
        case "agree" | "foreseen" | "foreign":
            return bool(session.spans)
        case "catch up":
            return desk.speculation.fed_length < len(desk.text)
        case _:
            return session.following and not session.spans


def _make(desk: Desk, move: str, draw: Callable[[int], int]) -> None:
    session = desk.session
    match move:
        case "draft":
            desk.draft()
        case "both" | "branch":
            starts = [start for _, start in desk.speculation.tree.sites()]
            desk.draft(text=move == "both", branches=(starts[draw(len(starts))],))
        case "send":
            desk.send(continuation_tokens=draw(2) * 8)
        case "agree":
            end = session.spans[0].end
            desk.receive(Verdict(session.revision, end, desk.text[end] if end < len(desk.text) else draw(16)))
        case "foreseen" | "foreign":
            at = session.spans[0].start + draw(len(session.spans[0].token_ids))
            wanted = second(desk.text[:at]) if move == "foreseen" else (desk.text[at] + 1 + draw(15)) % 16
            desk.override(at, wanted)
        case "write" | "hand back":
            tokens = [(greedy(desk.text[: session.final_length]), draw(16))[draw(2)]]
            tokens += [draw(16) for _ in range(draw(3))]
            desk.receive(Continuation(session.final_length, tuple(tokens), handed_back=move == "hand back"))
        case _:
            desk.catch_up()


@settings(max_examples=150)
@given(data=st.data())
def test_whatever_happens_the_text_is_what_the_model_would_write(data: st.DataObject) -> None:
    desk = Desk(branches=data.draw(st.integers(0, 3)), limit=40, eos=(15,))
    for _ in range(data.draw(st.integers(1, 30))):
        possible = [move for move in MOVES if _may(desk, move)]
        if not possible:
            break
        _make(desk, data.draw(st.sampled_from(possible)), lambda below: data.draw(st.integers(0, below - 1)))
        desk.check()

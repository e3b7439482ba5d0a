"""Model and draft tree in step with the text, if the cloud has judged branches, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.frames import Continuation, Verdict
from chaperone_common.session import Committed, Retracted
from chaperone_common.types import Origin
from edge_client.planner import BranchPrefix
from tests.support.device.speculation import START, SpeculationHarness, greedy, second

AT = START + 1  # where the branch of these tests begins


def continued(text: list[int], tokens: int) -> list[int]:
    """Return the tokens that the small model writes after a text."""
    written = list(text)
    for _ in range(tokens):
        written.append(greedy(written))
    return written[len(text) :]


def branched(
    *, sent: int, after: int, limit: int = 60, eos: tuple[int, ...] = ()
) -> tuple[SpeculationHarness, int, list[int]]:
    """Send four tokens with `sent` tokens of a branch, then draft up to `after` tokens after the branch's first.

    Return the harness, the branch's first token, and the tokens that the small model writes after it.
    """
    harness = SpeculationHarness(limit=limit, eos=eos)
    harness.draft(4)
    wanted = second(harness.text[:AT])
    harness.branch(AT, tokens=sent - 1)
    harness.send(BranchPrefix(AT, sent))
    harness.branch(AT, tokens=after - (sent - 1))
    return harness, wanted, continued([*harness.text[:AT], wanted], 6)


def test_an_accepted_branch_becomes_text_and_its_rest_the_draft() -> None:
    harness, wanted, after = branched(sent=3, after=5)
    steps = harness.model.steps
    harness.override(AT, wanted, *after[:3])
    assert harness.text[AT:] == [wanted, *after[:5]]
    assert harness.session.final_length == AT + 4, "two branch tokens that stand, and the cloud's own after them"
    assert harness.model.steps == steps
    harness.check()
    harness.draft()
    assert harness.model.steps == steps + 1, "and its rows are the text's"
    harness.check()


def test_an_undrafted_token_ends_the_branch_and_keeps_its_agreeing_part() -> None:
    harness, wanted, after = branched(sent=4, after=5)
    foreign = (after[2] + 1) % 16
    steps = harness.model.steps
    harness.override(AT, wanted, after[0], after[1], foreign)
    assert harness.text[AT:] == [wanted, after[0], after[1], foreign]
    assert harness.speculation.fed_length == len(harness.text) - 1, "only the foreign token is unread"
    harness.draft(2)
    assert harness.model.steps == steps + 2
    harness.check()


def test_a_runner_up_alone_needs_no_row_and_brings_one_token_more() -> None:
    harness, wanted, _ = branched(sent=1, after=0)
    assert harness.speculation.tree.branches == {}
    steps = harness.model.steps
    harness.override(AT, wanted, 3)
    assert harness.text[AT:] == [wanted, 3]
    harness.draft()
    assert harness.model.steps == steps + 1, "both are read in one forward"
    harness.draft(2)
    harness.check()


@pytest.mark.parametrize("agrees", [True, False])
def test_a_branch_grown_during_its_verification_continues_after_the_verdict(agrees: bool) -> None:
    harness, wanted, after = branched(sent=1, after=3)
    own = after[0] if agrees else (after[0] + 1) % 16
    harness.override(AT, wanted, own)
    assert harness.text[AT:] == ([wanted, *after[:3]] if agrees else [wanted, own])
    harness.draft(2)
    harness.check()


def test_a_bonus_after_a_whole_branch_is_read_with_its_last_token() -> None:
    harness, wanted, after = branched(sent=3, after=2)
    steps = harness.model.steps
    harness.override(AT, wanted, after[0], after[1], 9)
    assert harness.text[AT:] == [wanted, after[0], after[1], 9]
    assert harness.speculation.fed_length == len(harness.text) - 2, "a branch's last proposal has not been fed"
    harness.draft()
    assert harness.model.steps == steps + 1
    harness.draft(2)
    harness.check()


def test_a_branch_of_another_position_is_not_used() -> None:
    harness, _, _ = branched(sent=3, after=4)
    other = second(harness.text[:START])
    harness.override(START, other)
    assert harness.text[START:] == [other]
    harness.draft(2)
    harness.check()


def test_origins_of_the_tokens_of_a_branch() -> None:
    harness, wanted, after = branched(sent=3, after=2)
    harness.override(AT, wanted, after[0], after[1], 9)
    committed = [event for event in harness.events if isinstance(event, Committed)]
    assert [event.origin for event in committed] == [
        Origin.VERIFIED,
        Origin.OVERRIDE,
        Origin.VERIFIED,
        Origin.VERIFIED,
        Origin.BONUS,
    ]
    assert [event for event in harness.events if isinstance(event, Retracted)] == [Retracted(AT)]


# --- Ends ------------------------------------------------------------------------------------------------------------


def test_a_verdict_that_fills_the_text_leaves_nothing_to_draft() -> None:
    harness, wanted, after = branched(sent=3, after=2, limit=START + 4)
    harness.override(AT, wanted, after[0], after[1])
    assert len(harness.text) == harness.session.limit
    assert harness.session.finish_reason is not None
    harness.check()


def test_end_of_text_after_a_branch_ends_the_text_despite_later_drafts() -> None:
    harness, wanted, after = branched(sent=2, after=4)
    eos = next(token for token in range(16) if token not in (*harness.text, wanted, *after))
    harness, wanted, after = branched(sent=2, after=4, eos=(eos,))
    harness.override(AT, wanted, after[0], eos)
    assert harness.text[AT:] == [wanted, after[0], eos]
    assert harness.session.finish_reason is not None
    harness.check()


def test_a_takeover_begins_after_the_branch_and_may_repeat_its_draft() -> None:
    harness = SpeculationHarness()
    harness.draft(2)
    wanted = second(harness.text[:AT])
    harness.branch(AT, tokens=4)
    harness.send(BranchPrefix(AT, 2), continuation_tokens=20)
    after = continued([*harness.text[:AT], wanted], 6)
    steps = harness.model.steps
    harness.override(AT, wanted, *after[:2])
    assert harness.session.following
    assert harness.text[AT:] == [wanted, *after[:4]], "ahead of the cloud"
    harness.receive(Continuation(harness.session.final_length, (after[2],), handed_back=True))
    assert harness.model.steps == steps
    harness.draft(2)
    harness.check()


# --- Learning --------------------------------------------------------------------------------------------------------


def test_judged_proposals_of_a_branch_update_the_acceptance_estimate() -> None:
    agreeing, silent, contradicting = (branched(sent=4, after=4) for _ in range(3))
    for (harness, wanted, after), further in (
        (agreeing, agreeing[2][:4]),
        (silent, []),
        (contradicting, [(contradicting[2][0] + 1) % 16]),
    ):
        assert harness.text[AT] != wanted, "an override"
        assert len(after) > len(further)
        harness.override(AT, wanted, *further)
    taught = [harness.estimates.risks.corrected(0.2) for harness, _, _ in (agreeing, silent, contradicting)]
    assert taught[0] < taught[1] < taught[2]


def test_a_proposal_after_a_token_that_was_not_drafted_is_not_judged() -> None:
    taught = []
    for tokens in (1, 2):
        harness = SpeculationHarness()
        harness.draft(2)
        harness.send(continuation_tokens=20)
        harness.override(START, second(harness.text[:START]))
        harness.draft(2)
        wanted = second(harness.text[:AT])
        harness.branch(AT, tokens=tokens)
        after = continued([*harness.text[:AT], wanted], 2)
        written = (wanted, (after[0] + 1) % 16, after[1])
        harness.receive(Continuation(harness.session.final_length, written, handed_back=False))
        taught.append(harness.estimates.risks.corrected(0.2))
    assert taught[0] == taught[1]


# --- Random events ---------------------------------------------------------------------------------------------------


def _verdict(harness: SpeculationHarness, choose: Callable[[list[int]], int]) -> Verdict:
    """Return a cloud's verdict on the oldest span: it follows the chain, and then the branches."""
    session, span = harness.session, harness.session.spans[0]
    chain, text = span.token_ids, harness.text[: span.start]
    index = span.start - 1
    while (own := choose(text)) not in session.eos_token_ids and own in chain[index + 1 - span.start :][:1]:
        text.append(own)
        index += 1
    position, further = len(text), [own]
    revision = span.revision + (harness.text[position : position + 1] != [own] and position < span.end)
    while further[-1] not in session.eos_token_ids and position + len(further) < session.limit:
        child = span.tree.child(index, further[-1])
        if child is None:
            break
        index = child
        further.append(choose([*text, *further]))
    return Verdict(revision, position, own, further_token_ids=tuple(further[1:]))


@settings(max_examples=150)
@given(data=st.data())
def test_after_any_verdict_the_text_continues_as_the_model_writes(data: st.DataObject) -> None:
    harness = SpeculationHarness(
        branches=data.draw(st.integers(1, 3)), limit=data.draw(st.integers(START + 2, 30)), eos=(15,)
    )
    session, tree = harness.session, harness.speculation.tree

    def choose(text: list[int]) -> int:
        return (greedy(text), second(text), second(text), data.draw(st.integers(0, 15)))[data.draw(st.integers(0, 3))]

    def draft_branches() -> None:
        for _ in range(data.draw(st.integers(0, 6))):
            if sites := [start for _, start in tree.sites()]:
                harness.draft(text=False, branches=(data.draw(st.sampled_from(sites)),))
                harness.check()

    while session.finish_reason is None:
        for _ in range(data.draw(st.integers(1, 3))):
            if not session.exhausted:
                harness.draft()
        draft_branches()
        tokens = data.draw(st.integers(1, 4))
        harness.send(*(BranchPrefix(start, tokens) for start in range(session.sent_length, len(harness.text))))
        draft_branches()
        harness.receive(_verdict(harness, choose))
        harness.check()

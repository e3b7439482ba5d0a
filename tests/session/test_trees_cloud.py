"""Branches next to a span, in the cloud: reading, following and refusing them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Close, Closed, Continuation, Draft, Verdict
from chaperone_common.session import CloudSession
from chaperone_common.token_tree import BranchToken
from tests.support.session.cloud import answer, draft, session
from tests.support.session.device import EOS, PROMPT, START

# Most examples send this Draft: the chain 1 2 3 from position 3 on, and next to it
#     6: 5 in place of the 2,   7: 6 after that 5,   8: 7 in place of the 6,   9: 9 after the 3, where the bonus goes
TREE = ((3, 5), (6, 6), (6, 7), (5, 9))


def read(cloud: CloudSession, frame: Draft) -> tuple[tuple[int, ...], int, tuple[BranchToken, ...]]:
    """Return the tokens, choices and branches of the forward that a Draft needs."""
    request = cloud.receive(frame)
    assert request is not None
    return request.judged, request.num_choices, request.tree.branches


# Answers


@pytest.mark.parametrize(
    ("choices", "verdict"),
    [
        ([1, 8, 3, 4, 0, 0, 0, 0], Verdict(1, 4, 8)),  # an override that matches no branch
        ([1, 5, 3, 4, 8, 0, 0, 0], Verdict(1, 4, 5, further_token_ids=(8,))),  # foreseen, and overridden after it
        ([1, 5, 3, 4, 6, 8, 0, 0], Verdict(1, 4, 5, further_token_ids=(6, 8))),  # the branch stands, with its bonus
        ([1, 5, 3, 4, 7, 0, 8, 0], Verdict(1, 4, 5, further_token_ids=(7, 8))),  # its second leaf
        ([1, 2, 3, 9, 0, 0, 0, 8], Verdict(0, 6, 9, further_token_ids=(8,))),  # the chain stands, and the bonus too
        ([1, 2, 3, 4, 0, 0, 0, 0], Verdict(0, 6, 4)),
        ([5, 2, 3, 4, 6, 8, 0, 0], Verdict(1, 3, 5)),  # a branch token's id, but at another place
    ],
)
def test_the_cloud_follows_the_chain_and_then_the_branches(choices: list[int], verdict: Verdict) -> None:
    cloud = session()
    assert answer(cloud, draft(START, 1, 2, 3, branches=TREE), choices) == verdict
    own = [verdict.token_id, *verdict.further_token_ids]
    assert cloud.text == [*PROMPT, *(1, 2, 3)[: verdict.position - START], *own]
    assert cloud.revision == verdict.revision


def test_the_text_continues_after_the_further_tokens() -> None:
    cloud = session()
    answer(cloud, draft(START, 1, 2, 3, branches=TREE), [1, 5, 3, 4, 6, 8, 0, 0])
    assert cloud.receive(draft(6, 4)) is None, "in flight after the override"
    assert answer(cloud, draft(7, 2, revision=1), [2, 4]) == Verdict(1, 8, 4)


def test_of_siblings_with_one_id_the_first_counts() -> None:
    cloud = session()
    frame = draft(START, 1, branches=((2, 5), (2, 5), (4, 6), (5, 7)))
    assert answer(cloud, frame, [5, 0, 7, 6, 0, 0]) == Verdict(1, 3, 5, further_token_ids=(7,))
    chain_first = session()
    assert answer(chain_first, draft(START, 1, branches=((2, 1), (4, 6))), [1, 9, 6, 8]) == Verdict(0, 4, 9)


def test_an_end_of_text_in_a_branch_is_the_last_token() -> None:
    for choices in ([5, 0, EOS, 8], [5, 0, 4, 8]):
        cloud = session()
        frame = draft(START, 1, branches=((2, 5), (4, EOS)), continuation_tokens=4)
        assert answer(cloud, frame, choices) == Verdict(1, 3, 5, further_token_ids=(choices[2],))
        assert cloud.ended == (choices[2] == EOS)
        assert cloud.writes != cloud.ended
    first = session()
    assert answer(first, draft(START, 1, branches=((2, EOS), (4, 6))), [EOS, 0, 6, 8]) == Verdict(1, 3, EOS)


def test_committed_tokens_before_the_branch_are_audited() -> None:
    cloud = session()
    frame = draft(START, 1, 2, 3, final_before=5, branches=((4, 5), (6, 6)))
    verdict = Verdict(1, 5, 5, (3,), further_token_ids=(6, 8))
    assert answer(cloud, frame, [9, 2, 5, 0, 6, 8]) == verdict
    assert cloud.text == [7, 8, 9, 1, 2, 5, 6, 8]


def test_a_takeover_begins_after_the_further_tokens() -> None:
    cloud = session()
    frame = draft(START, 1, 2, 3, branches=TREE, continuation_tokens=1)
    answer(cloud, frame, [1, 5, 3, 4, 6, 8, 0, 0])
    assert cloud.writing().tree.token_ids == (7, 8, 9, 1, 5, 6, 8)
    assert cloud.answer(cloud.writing(), [2]) == Continuation(7, (2,), handed_back=True)


def test_a_bonus_that_was_foreseen_begins_no_takeover() -> None:
    cloud = session()
    answer(cloud, draft(START, 1, 2, 3, branches=TREE, continuation_tokens=1), [1, 2, 3, 9, 0, 0, 0, 8])
    assert not cloud.writes


def test_a_draft_with_branches_takes_back_a_takeover() -> None:
    cloud = session()
    answer(cloud, draft(START, continuation_tokens=9), [5])
    frame = draft(4, 6, 1, branches=((4, 2), (6, 3)))
    assert cloud.hands_back(frame)
    assert cloud.hand_back() == Continuation(4, (), handed_back=True)
    assert answer(cloud, frame, [6, 2, 0, 3, 4]) == Verdict(1, 5, 2, further_token_ids=(3, 4))


def test_a_draft_in_flight_is_compared_with_the_further_tokens() -> None:
    cloud = session()
    answer(cloud, draft(START, 1, 2, 3, branches=TREE), [1, 2, 3, 9, 0, 0, 0, 8])
    assert answer(cloud, draft(6, 9), []) == Verdict(0, 7, 8), "the cloud has sent both before"
    assert cloud.receive(draft(7, 4)) is None
    assert (cloud.text, cloud.revision) == ([7, 8, 9, 1, 2, 3, 9, 8], 1)


def test_the_closing_audit_begins_after_the_further_tokens() -> None:
    cloud = session()
    answer(cloud, draft(START, 1, 2, 3, branches=TREE), [1, 5, 3, 4, 6, 8, 0, 0])
    assert answer(cloud, Close(7, (2, 3)), [2, 4]) == Closed((8,))
    short = session()
    answer(short, draft(START, 1, 2, 3, branches=TREE), [1, 5, 3, 4, 6, 8, 0, 0])
    assert answer(short, Close(5, ()), []) == Closed(), "a stop string was completed before them"


# Forwards


def test_all_branches_are_read_next_to_a_chain_that_is_new() -> None:
    assert read(session(), draft(START, 1, 2, 3, branches=TREE)) == ((1, 2, 3), 4, TREE)


def test_branches_before_tokens_that_the_cloud_holds_are_not_read() -> None:
    cloud = session()
    answer(cloud, draft(START, 1), [1, 2])
    frame = draft(4, 2, 3, branches=((3, 5), (6, 6), (4, 7), (8, 8), (5, 9)))
    assert read(deepcopy(cloud), frame) == ((3,), 2, ((4, 7), (6, 8), (5, 9)))
    assert answer(cloud, frame, [7, 0, 8, 4, 0]) == Verdict(1, 5, 7, further_token_ids=(8, 4))


def test_no_branch_is_read_next_to_a_chain_that_the_cloud_holds_whole() -> None:
    """The device may have committed skipped tokens after it, so nothing may follow the bonus."""
    cloud = session()
    answer(cloud, draft(START, 1), [1, 2])
    assert read(cloud, draft(4, 2, branches=((4, 5), (5, 6)))) == ((), 1, ())


def test_branches_before_the_last_committed_token_are_not_read() -> None:
    frame = draft(START, 1, 2, 3, final_before=5, branches=((2, 5), (3, 6), (6, 7), (4, 8), (9, 9)))
    assert read(session(), frame) == ((1, 2, 3), 4, ((4, 8), (6, 9)))


def test_no_choice_is_made_at_the_limit() -> None:
    frame = draft(START, 1, 2, branches=((2, 5), (5, 6), (6, 7), (3, 8)))
    assert read(session(max_new_tokens=3), frame) == ((1, 2), 3, ((2, 5), (5, 6), (3, 8)))
    cloud = session(max_new_tokens=3)
    assert answer(cloud, frame, [5, 0, 0, 6, 7, 0]) == Verdict(1, 3, 5, further_token_ids=(6, 7))
    assert cloud.ended
    full = session(max_new_tokens=2)
    filling = draft(START, 1, 2, branches=((2, 5), (5, 6), (3, 8)))
    assert answer(full, filling, [5, 0, 6]) == Verdict(1, 3, 5, further_token_ids=(6,))
    assert full.ended
    last = session(max_new_tokens=2)
    assert answer(last, filling, [1, 8, 0]) == Verdict(1, 4, 8)


# Refusals


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (draft(3, 1, branches=((2, 50),)), "token_ids: 50 is not in a vocabulary of 50"),
        (draft(3, 1, branches=((3, 2**32 - 1),)), "token_ids: 4294967295 is not in a vocabulary of 50"),
        (draft(3, *[1] * 20, branches=((22, 1),)), "parents: a branch token at 23 is not below the limit of 23"),
        (
            draft(3, *[1] * 19, branches=((21, 1), (22, 1))),
            "parents: a branch token at 23 is not below the limit of 23",
        ),
        (draft(3, branches=((2, 1),)), "parents: 1 branch tokens next to 0 tokens, and none of these is judged"),
        (
            draft(3, 1, 2, final_before=5, branches=((4, 1), (5, 1))),
            "parents: 2 branch tokens next to 2 tokens, and none of these is judged",
        ),
    ],
)
def test_bad_branches_are_refused_with_the_value(frame: Draft, message: str) -> None:
    cloud = session()
    with pytest.raises(ProtocolViolation, match=re.escape(message)):
        cloud.receive(frame)
    assert cloud.text == [*PROMPT]


@st.composite
def hostile(draw: st.DrawFn) -> Draft:
    """Draw any branches that the wire accepts."""
    chain = draw(st.lists(st.integers(0, 3), max_size=4))
    start = draw(st.integers(2, 9))
    end = start + len(chain)
    branches = [
        (draw(st.integers(start - 1, index - 1)), draw(st.integers(0, 3)))
        for index in range(end, end + draw(st.integers(0, 5)))
    ]
    final = draw(st.sampled_from([start, start, start + len(chain), draw(st.integers(2, 9))]))
    revision, more = draw(st.integers(0, 2)), draw(st.sampled_from([0, 2]))
    return draft(start, *chain, revision=revision, final_before=final, continuation_tokens=more, branches=branches)


def in_short(cloud: CloudSession, frames: Sequence[Draft], seed: int) -> None:
    """Play a hostile device to the end, and check that the text stays whole."""
    for number, frame in enumerate(frames):
        try:
            if cloud.hands_back(frame):
                cloud.hand_back()
            request = cloud.receive(frame)
        except ProtocolViolation:
            return
        if request is not None:
            wanted = request.num_choices + len(request.tree.branches)
            reply = cloud.answer(request, [(seed + number * place) % 4 for place in range(wanted)])
            assert isinstance(reply, Verdict)
            further = reply.further_token_ids
            if request.num_choices:
                assert cloud.text[reply.position :] == [reply.token_id, *further]
            assert EOS not in (reply.token_id, *further)[: len(further)], "nothing follows the end"
        assert tuple(cloud.text[:START]) == PROMPT
        assert len(cloud.text) <= cloud.limit


@settings(max_examples=300)
@given(frames=st.lists(hostile(), max_size=8), seed=st.integers(0, 99))
def test_hostile_branches_cause_only_documented_refusals(frames: list[Draft], seed: int) -> None:
    in_short(session(max_new_tokens=6), frames, seed)

"""A device that sends any frames in any order gets documented refusals, and never a broken text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common import wire
from chaperone_common.errors import InvalidRequest
from chaperone_common.frames import Close, Draft, Open
from chaperone_common.session import CloudSession
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams, SessionId
from tests.support.session.attacked_cloud import CONTEXT, VOCABULARY, AttackedCloud

U32 = st.integers(0, 2**32 - 1)
# Few ids, so that drafts often agree with the model; one ends the text, and one is outside the vocabulary.
TOKEN = st.sampled_from([0, 1, 1, 1, 2, 2, 3, VOCABULARY - 1]) | st.sampled_from([VOCABULARY, 2**32 - 1])
GOOD_TOKEN = st.sampled_from([0, 1, 1, 2, 3])
FEW = st.sampled_from([0, 0, 0, 1, 2, 9, 2**32 - 1])


@st.composite
def opens(draw: st.DrawFn, *, good: bool) -> Open:
    tokens = GOOD_TOKEN if good else TOKEN
    return Open(
        SessionId("s"),
        "",
        SamplingParams(),
        draw(st.integers(1, 30) if good else U32 | st.integers(0, 50)),
        tuple(draw(st.lists(GOOD_TOKEN | U32, max_size=3))),
        tuple(draw(st.lists(tokens, min_size=1 if good else 0, max_size=5 if good else CONTEXT + 2))),
        tuple(draw(st.lists(tokens, max_size=5 if good else CONTEXT + 2))),
    )


@st.composite
def drafts(draw: st.DrawFn, cloud: AttackedCloud, tokens: st.SearchStrategy[int]) -> Draft:
    """Draw a Draft near the end of the text, most often one that is valid or nearly so."""
    session = cloud.session
    start = max(0, len(session.text) + draw(st.sampled_from([0, 0, 0, -1, -2, -5, 1, 2**31])))
    again = session.text[start : start + draw(st.integers(0, 3))]  # tokens that the cloud knows
    chain = (*again, *draw(st.lists(tokens, max_size=6)))
    final = start + draw(st.sampled_from([0, 0, len(chain), len(chain) + 1, 1, 2**32 - 1]))
    branches: list[BranchToken] = []
    if start > 0:
        for index in range(draw(st.sampled_from([0, 0, 1, 4]))):
            parent = start - 1 + draw(st.integers(0, len(chain) + index))
            branches.append(BranchToken(parent, draw(tokens)))
    revision = max(0, session.revision + draw(st.sampled_from([0, 0, 0, 0, -1, 1])))
    return Draft(revision, start, chain, (), final, draw(FEW), draw(FEW), tuple(branches))


def closes(cloud: AttackedCloud, tokens: st.SearchStrategy[int]) -> st.SearchStrategy[Close]:
    end = len(cloud.session.text)
    starts = st.sampled_from([end, max(0, end - 1), max(0, end - 4), end + 1, 0])
    return st.builds(Close, starts, st.lists(tokens, max_size=6).map(tuple))


@settings(max_examples=400)
@given(opening=opens(good=True), seed=st.integers(0, 10**6), data=st.data())
def test_any_frames_leave_a_whole_text_or_are_refused(opening: Open, seed: int, data: st.DataObject) -> None:
    choose = (lambda number: seed * 7 + number) if seed % 2 else (lambda number: 1 + number % 2)
    try:
        cloud = AttackedCloud(opening, choose)
    except InvalidRequest:
        return
    tokens = GOOD_TOKEN if data.draw(st.booleans(), "ids of the vocabulary only") else TOKEN
    for _ in range(data.draw(st.integers(1, 15), "frames")):
        move = data.draw(st.sampled_from(["draft"] * 5 + ["write", "write", "close", "open"]))
        if move == "draft":
            cloud.take(data.draw(drafts(cloud, tokens)))
        elif move == "close":
            cloud.take(data.draw(closes(cloud, tokens)))
        else:
            cloud.take(opening if move == "open" else None)
        if cloud.ended:
            break


@settings(max_examples=200)
@given(opening=opens(good=False))
def test_any_open_is_served_or_refused(opening: Open) -> None:
    try:
        read = wire.decode_client(wire.encode_client(opening))
        assert read == opening
        cloud = CloudSession(opening, context_tokens=CONTEXT, vocabulary_size=VOCABULARY)
    except InvalidRequest:
        return
    assert cloud.text == [*opening.prompt_token_ids, *opening.committed_token_ids]
    assert len(cloud.text) < CONTEXT


@pytest.mark.parametrize("more", [0, 5])
def test_the_attacks_reach_every_kind_of_answer(more: int) -> None:
    """The checks above would be empty if every stream were refused at its first frame."""
    opening = Open(SessionId("s"), "", SamplingParams(), 20, (0,), (1, 2))
    cloud = AttackedCloud(opening, lambda number: 1 + number % 3)
    cloud.take(Draft(0, 2, (3, 3), (), 2, more, branches=(BranchToken(1, 1),)))
    cloud.take(None)
    cloud.take(Draft(cloud.session.revision, len(cloud.session.text), (1, 2), (), len(cloud.session.text) + 2))
    cloud.take(Close(len(cloud.session.text) - 1, (3, 3)))
    kinds = [type(reply).__name__ for reply in cloud.replies]
    assert kinds == ["Verdict", *["Continuation"] * (2 if more else 0), "Verdict", "Closed"]

"""Token trees on the wire: they survive it, a chain costs no byte for them, and invalid trees are refused."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common import wire
from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.frames import Draft, Verdict
from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb
from chaperone_common.token_tree import BranchToken

VOCABULARY = 151_665
U32 = st.integers(0, 2**32 - 1)


@st.composite
def trees(draw: st.DrawFn) -> Draft:
    chain = draw(st.lists(U32, max_size=8).map(tuple))
    ids = draw(st.lists(U32, max_size=8))
    branches = [
        BranchToken(draw(st.integers(69, 69 + len(chain) + index)), token_id) for index, token_id in enumerate(ids)
    ]
    risks = (1.0,) * len(chain) if draw(st.booleans()) else ()
    return Draft(1, 70, chain, risks, 70 + draw(st.integers(0, len(chain))), branches=tuple(branches))


@given(frame=trees())
def test_trees_survive(frame: Draft) -> None:
    assert wire.decode_client(wire.encode_client(frame)) == frame


@settings(max_examples=300)
@given(parents=st.lists(st.integers(0, 6), max_size=6), tokens=st.integers(0, 6), risks=st.integers(0, 6))
def test_only_valid_trees_are_read(parents: list[int], tokens: int, risks: int) -> None:
    message = pb.Draft(start=70, token_ids=[1] * tokens, parents=parents, risks=b"\x01" * risks)
    chain = tokens - len(parents)
    good = chain >= 0 and risks in (0, chain) and all(p <= chain + index for index, p in enumerate(parents))
    try:
        frame = wire.decode_client(pb.SuperviseRequest(draft=message).SerializeToString())
    except (ProtocolViolation, InvalidRequest):
        assert not good
    else:
        assert good
        assert isinstance(frame, Draft)
        assert (len(frame.token_ids), [branch.parent - 69 for branch in frame.branches]) == (chain, parents)


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        (pb.Draft(token_ids=[1, 2], parents=[0, 0, 0]), "parents: 3 for 2 tokens"),
        (pb.Draft(token_ids=[1, 2], parents=[2]), "parents: 2 does not come before token 2, its child"),
        (pb.Draft(token_ids=[1, 2, 3], parents=[2, 1]), "parents: 2 does not come before token 2, its child"),
        (pb.Draft(token_ids=[1, 2, 3], parents=[0, 2**32 - 1]), "parents: 4294967295 does not come before token 3"),
        (pb.Draft(token_ids=[1, 2, 3], parents=[0], risks=b"\x01\x01\x01"), "risks: 3 bytes for 2 tokens"),
    ],
)
def test_an_invalid_tree_is_refused_with_the_value(message: pb.Draft, refusal: str) -> None:
    with pytest.raises(ProtocolViolation, match="^" + re.escape(refusal)):
        wire.decode_client(pb.SuperviseRequest(draft=message).SerializeToString())


def test_risks_and_final_tokens_count_the_chain() -> None:
    message = pb.Draft(start=70, token_ids=[1, 2, 3], parents=[1], risks=b"\x00\xff", final_tokens=1)
    frame = wire.decode_client(pb.SuperviseRequest(draft=message).SerializeToString())
    assert frame == Draft(0, 70, (1, 2), (0.0, 1.0), 71, branches=(BranchToken(70, 3),))


def test_a_chain_and_a_verdict_without_further_tokens_cost_no_byte() -> None:
    message = pb.Draft(revision=1, start=1900, token_ids=[1, 2])
    data = pb.SuperviseRequest(draft=message).SerializeToString()
    assert wire.encode_client(Draft(1, 1900, (1, 2), (), 1900)) == data
    verdict = pb.SuperviseResponse(verdict=pb.Verdict(revision=1, position=1907, token_id=5)).SerializeToString()
    assert wire.encode_server(Verdict(1, 1907, 5)) == verdict


def test_the_bytes_of_a_branch_token() -> None:
    """A branch token costs its id and a byte for its parent; the first one also two bytes for the field."""
    largest = VOCABULARY - 1
    branches = tuple(BranchToken(parent, largest) for parent in (1902, 1908, 1904))
    sizes = [len(wire.encode_client(Draft(1, 1900, (largest,) * 8, (), 1900, branches=branches[:n]))) for n in range(4)]
    assert [after - before for before, after in pairwise(sizes)] == [6, 4, 4]


def test_the_bytes_of_a_further_token() -> None:
    sizes = [len(wire.encode_server(Verdict(1, 1907, 5, further_token_ids=(VOCABULARY - 1,) * n))) for n in range(4)]
    assert [after - before for before, after in pairwise(sizes)] == [5, 3, 3]

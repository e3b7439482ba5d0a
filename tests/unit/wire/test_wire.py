"""Frames survive the wire, fit their byte budget, and invalid bytes are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common import wire
from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.frames import (
    API_VERSION,
    Capabilities,
    ClientFrame,
    Close,
    Closed,
    Continuation,
    Draft,
    Failure,
    Open,
    Opened,
    Prefix,
    ServerFrame,
    Verdict,
)
from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb
from chaperone_common.ranges import MAX_SEED
from chaperone_common.types import SamplingParams, SessionId

VOCABULARY = 151_665
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
IDS = st.lists(U32, max_size=20).map(tuple)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
SAMPLING = st.builds(
    SamplingParams,
    temperature=st.floats(0, 1e6),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=U32,
    min_p=st.floats(0, 1),
    seed=U64,
)
OPENS = st.builds(
    Open,
    session_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64).map(SessionId),
    tokenizer_digest=TEXT,
    sampling=SAMPLING,
    max_new_tokens=U32,
    eos_token_ids=st.lists(U32, max_size=64).map(tuple),
    prompt_token_ids=IDS,
    committed_token_ids=IDS,
    api_version=U32,
    model_digest=TEXT,
    prefix=st.none()
    | st.builds(
        Prefix,
        session_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64).map(SessionId),
        length=st.integers(1, 2**32 - 1),
        digest=st.binary(min_size=16, max_size=16),
    ),
)
STATUSES = ["UNKNOWN", "INVALID_ARGUMENT", "NOT_FOUND", "ABORTED", "OUT_OF_RANGE", "INTERNAL", "UNAUTHENTICATED"]


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    token_ids = draw(IDS)
    risks = draw(st.lists(st.floats(0, 1), min_size=len(token_ids), max_size=len(token_ids)))
    start = draw(U32)
    return Draft(
        draw(U32),
        start,
        token_ids,
        tuple(risks) if draw(st.booleans()) else (),
        start + draw(U32),
        draw(U32),
        draw(U32),
    )


SERVER_FRAMES: st.SearchStrategy[ServerFrame] = st.one_of(
    st.builds(Opened, st.booleans(), U32, U64, U64, U32, U32),
    st.builds(Verdict, U32, U32, U32, IDS, U64, U64),
    st.builds(Continuation, U32, IDS, st.booleans(), U64, U64),
    st.builds(Closed, IDS, U64, U64),
    st.builds(Failure, st.sampled_from(STATUSES), TEXT, st.none() | U32),
)


@given(frame=OPENS | st.builds(Close, U32, IDS))
def test_open_and_close_survive(frame: ClientFrame) -> None:
    assert wire.decode_client(wire.encode_client(frame)) == frame


@given(frame=drafts())
def test_drafts_survive_with_risks_to_a_byte(frame: Draft) -> None:
    back = wire.decode_client(wire.encode_client(frame))
    assert isinstance(back, Draft)
    assert len(back.risks) == len(frame.risks)
    assert all(abs(ours - theirs) <= 1 / 255 for ours, theirs in zip(frame.risks, back.risks, strict=True))
    without = [
        (f.revision, f.start, f.token_ids, f.final_before, f.continuation_tokens, f.deadline_ms) for f in (frame, back)
    ]
    assert without[0] == without[1]
    assert wire.decode_client(wire.encode_client(back)) == back  # a second trip rounds no further


@given(frame=SERVER_FRAMES)
def test_frames_of_the_cloud_survive(frame: ServerFrame) -> None:
    assert wire.decode_server(wire.encode_server(frame)) == frame


@given(value=st.builds(Capabilities, U32, TEXT, TEXT, U32, U32, st.integers(1, 2**32 - 1), TEXT, kept_texts=U32))
def test_capabilities_survive(value: Capabilities) -> None:
    assert wire.decode_capabilities(wire.encode_capabilities(value)) == value


def test_the_request_for_capabilities_is_empty() -> None:
    assert wire.encode_capabilities_request() == b""


@pytest.mark.parametrize("number", range(17))
def test_every_grpc_code_survives(number: int) -> None:
    data = pb.SuperviseResponse(failure=pb.Failure(code=number, message="why")).SerializeToString()
    frame = wire.decode_server(data)
    assert isinstance(frame, Failure)
    assert frame.status == "UNKNOWN" if number in (0, 2) else frame.status != "UNKNOWN"
    assert wire.decode_server(wire.encode_server(frame)) == frame


def test_an_unknown_code_or_status_is_unknown() -> None:
    data = pb.SuperviseResponse(failure=pb.Failure(code=4711)).SerializeToString()
    assert wire.decode_server(data) == Failure("UNKNOWN", "", None)
    assert wire.decode_server(wire.encode_server(Failure("NO_SUCH", "why"))) == Failure("UNKNOWN", "why", None)


def test_a_retry_hint_of_zero_is_a_hint() -> None:
    now, absent = Failure("RESOURCE_EXHAUSTED", "", 0), Failure("RESOURCE_EXHAUSTED", "", None)
    assert wire.decode_server(wire.encode_server(now)) == now
    assert wire.decode_server(wire.encode_server(absent)) == absent


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 3, "digest": b"d" * 16}, "prefix.session_id: 0 characters"),
        ({"session_id": "s" * 65, "length": 3, "digest": b"d" * 16}, "prefix.session_id: 65 characters"),
        ({"session_id": "s", "digest": b"d" * 16}, "prefix: length 0, and a digest of 16 bytes"),
        ({"session_id": "s", "length": 3, "digest": b"d" * 15}, "prefix: length 3, and a digest of 15 bytes"),
    ],
)
def test_a_malformed_prefix_is_refused(fields: dict[str, Any], message: str) -> None:
    opening = pb.Open(session_id="t", prefix=pb.Prefix(**fields))
    with pytest.raises(InvalidRequest, match=message):
        wire.decode_client(pb.SuperviseRequest(open=opening).SerializeToString())


# Absence


def test_absent_sampling_is_greedy() -> None:
    frame = wire.decode_client(pb.SuperviseRequest(open=pb.Open(session_id="s")).SerializeToString())
    assert isinstance(frame, Open)
    assert frame.sampling == SamplingParams()


def test_absent_top_p_cuts_nothing_and_zero_is_refused() -> None:
    present = pb.SuperviseRequest(open=pb.Open(session_id="s", sampling=pb.SamplingParams(top_p=0.0)))
    with pytest.raises(InvalidRequest, match="top_p"):
        wire.decode_client(present.SerializeToString())


def test_absent_final_tokens_are_none() -> None:
    data = pb.SuperviseRequest(draft=pb.Draft(start=70, token_ids=[1, 2])).SerializeToString()
    frame = wire.decode_client(data)
    assert isinstance(frame, Draft)
    assert frame.final_before == 70
    assert frame.risks == ()


def test_risks_are_clamped() -> None:
    back = wire.decode_client(wire.encode_client(Draft(0, 1, (1, 2, 3), (-0.5, 0.5, 7.0), 1)))
    assert isinstance(back, Draft)
    assert back.risks == (0.0, 128 / 255, 1.0)


# The budget


@pytest.mark.parametrize(
    ("final_before", "continuation_tokens"), [(1900, 0), (1900, 16), (1905, 0)]
)  # judged; takeover; audited
def test_a_span_of_eight_fits_in_fifty_bytes(final_before: int, continuation_tokens: int) -> None:
    token_ids = tuple(range(VOCABULARY - 8, VOCABULARY))
    draft = Draft(120, 1900, token_ids, (0.9,) * 8, final_before, continuation_tokens, deadline_ms=60_000)
    assert len(wire.encode_client(draft)) <= 50


def test_a_verdict_fits_in_twenty_bytes() -> None:
    verdict = Verdict(
        revision=120, position=1907, token_id=VOCABULARY - 1, deviations=(), queue_us=90_000, compute_us=500_000
    )
    assert len(wire.encode_server(verdict)) <= 20


@pytest.mark.parametrize("continuation_tokens", [0, 16])
def test_a_span_of_eight_that_repeats_nothing_fits_in_forty_bytes(continuation_tokens: int) -> None:
    """In `exact` every token is judged, so there are no risks, and the deadline was sent before."""
    token_ids = tuple(range(VOCABULARY - 8, VOCABULARY))
    sparse = Draft(120, 1900, token_ids, (), 1900, continuation_tokens)
    assert len(wire.encode_client(sparse)) <= 40
    full = Draft(120, 1900, token_ids, (0.9,) * 8, 1900, continuation_tokens, deadline_ms=60_000)
    assert len(wire.encode_client(full)) - len(wire.encode_client(sparse)) == 2 + 8 + 4  # risks and their tag; deadline


@pytest.mark.parametrize(("risks", "cost"), [((), 3), ((0.5,), 4)])  # bytes of the varint, and of the risk
def test_the_bytes_of_a_token(risks: tuple[float, ...], cost: int) -> None:
    eight, nine = (wire.encode_client(Draft(0, 1900, (VOCABULARY - 1,) * n, risks * n, 1900)) for n in (8, 9))
    assert len(nine) - len(eight) == cost


def test_an_unchanged_deadline_takes_no_byte() -> None:
    data = wire.encode_client(Draft(1, 1900, (1,), (), 1900, 0, deadline_ms=0))
    assert data == pb.SuperviseRequest(draft=pb.Draft(revision=1, start=1900, token_ids=[1])).SerializeToString()
    back = wire.decode_client(data)
    assert isinstance(back, Draft)
    assert back.deadline_ms == 0


# Invalid frames


def opening(**changes: object) -> bytes:
    fields: dict[str, object] = {"session_id": "s", "prompt_token_ids": [1], **changes}
    return pb.SuperviseRequest(open=pb.Open(**fields)).SerializeToString()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "sampling"),
    [
        ("temperature", pb.SamplingParams(temperature=-1)),
        ("temperature", pb.SamplingParams(temperature=math.nan)),
        ("temperature", pb.SamplingParams(temperature=math.inf)),
        ("top_p", pb.SamplingParams(top_p=1.5)),
        ("top_p", pb.SamplingParams(top_p=math.nan)),
        ("min_p", pb.SamplingParams(min_p=-0.5)),
        ("min_p", pb.SamplingParams(min_p=math.nan)),
    ],
)
def test_bad_sampling_is_reported(field: str, sampling: pb.SamplingParams) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        wire.decode_client(opening(sampling=sampling))


@pytest.mark.parametrize("session_id", ["", "s" * 65])
def test_a_bad_session_id_is_reported(session_id: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^session_id: {len(session_id)} characters; it must have 1 to 64"):
        wire.decode_client(opening(session_id=session_id))


def test_too_many_eos_ids_are_reported() -> None:
    with pytest.raises(InvalidRequest, match="^eos_token_ids: 65 ids, at most 64 allowed; "):
        wire.decode_client(opening(eos_token_ids=range(65)))


def test_risks_must_match_the_tokens() -> None:
    data = pb.SuperviseRequest(draft=pb.Draft(start=1, token_ids=[1, 2], risks=b"\x01")).SerializeToString()
    with pytest.raises(ProtocolViolation, match="^risks: 1 bytes for 2 tokens"):
        wire.decode_client(data)
    data = pb.SuperviseRequest(draft=pb.Draft(start=1, risks=b"\x01")).SerializeToString()
    with pytest.raises(ProtocolViolation, match="^risks: 1 bytes for 0 tokens"):
        wire.decode_client(data)


@pytest.mark.parametrize("decode", [wire.decode_client, wire.decode_server])
@pytest.mark.parametrize("data", [b"", b"\x78\x01"])  # nothing at all; only an unknown field
def test_an_unset_frame_is_refused(decode: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="^frame: none of "):
        decode(data)


@pytest.mark.parametrize("decode", [wire.decode_client, wire.decode_server, wire.decode_capabilities])
def test_invalid_bytes_are_refused(decode: Callable[[bytes], object]) -> None:
    with pytest.raises(ProtocolViolation, match="^frame: 3 bytes that are not a "):
        decode(b"\x0a\xff\xff")


def test_unknown_fields_of_a_newer_minor_version_are_ignored() -> None:
    frame = Close(5, (1, 2))
    assert wire.decode_client(wire.encode_client(frame) + b"\x78\x01") == frame


def decodes_or_refuses(decode: Callable[[bytes], object], data: bytes) -> bool:
    try:
        decode(data)
    except (ProtocolViolation, InvalidRequest) as refusal:
        return bool(str(refusal))
    return True


@settings(max_examples=300)
@given(data=st.binary(max_size=80))
def test_random_bytes_are_refused_with_a_documented_error(data: bytes) -> None:
    for decode in (wire.decode_client, wire.decode_server, wire.decode_capabilities):
        assert decodes_or_refuses(decode, data)


@settings(max_examples=300)
@given(
    data=st.one_of(OPENS, drafts()).map(wire.encode_client) | SERVER_FRAMES.map(wire.encode_server),
    position=st.integers(0, 10_000),
    byte=st.integers(0, 255),
    length=st.integers(0, 10_000),
)
def test_damaged_frames_are_read_or_refused_with_a_documented_error(
    data: bytes, position: int, byte: int, length: int
) -> None:
    damaged = bytearray(data)
    if damaged:
        damaged[position % len(damaged)] = byte
    del damaged[length % (len(damaged) + 1) + 1 :]
    for decode in (wire.decode_client, wire.decode_server):
        assert decodes_or_refuses(decode, bytes(damaged))


def test_the_largest_seed_survives() -> None:
    frame = wire.decode_client(opening(sampling=pb.SamplingParams(seed=MAX_SEED), api_version=API_VERSION))
    assert isinstance(frame, Open)
    assert frame.sampling.seed == MAX_SEED


def test_the_names_of_the_service() -> None:
    service = pb.DESCRIPTOR.services_by_name["SupervisionService"]
    assert wire.SERVICE == "chaperone.v1.SupervisionService"
    assert {method.name for method in service.methods} == {wire.SUPERVISE, wire.GET_CAPABILITIES, wire.FETCH_MODEL}

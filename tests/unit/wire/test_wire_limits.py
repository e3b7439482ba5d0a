"""Large frames are refused before they become large: by their bytes, their fields, and then their tokens."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable

import pytest

from chaperone_common import wire
from chaperone_common.errors import ChaperoneError, InvalidRequest, ProtocolViolation
from chaperone_common.frames import (
    Capabilities,
    ClientFrame,
    Close,
    Closed,
    Continuation,
    Draft,
    Failure,
    FrameLimits,
    Open,
    ServerFrame,
    Verdict,
)
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams, SessionId

LIMITS = FrameLimits(max_message_bytes=4096, max_text_tokens=10, max_span_tokens=8, max_eos_token_ids=2)
U32 = 2**32 - 1


def opening(
    *,
    prompt: int = 1,
    committed: int = 0,
    eos: int = 0,
    tokenizer_digest: str = "",
    model_digest: str = "",
) -> Open:
    return Open(
        SessionId("s"),
        tokenizer_digest,
        SamplingParams(),
        4,
        (1,) * eos,
        (1,) * prompt,
        (1,) * committed,
        model_digest=model_digest,
    )


def draft(chain: int, branches: int = 0, *, token_id: int = 1) -> Draft:
    tree = tuple(BranchToken(3, token_id) for _ in range(branches))
    return Draft(0, 4, (token_id,) * chain, (0.0,) * chain, 4, branches=tree)


# Tokens


@pytest.mark.parametrize(
    "frame",
    [opening(prompt=6, committed=4), opening(eos=2), draft(5, 3), draft(8, token_id=U32), Close(4, (1,) * 10)],
)
def test_a_frame_of_the_device_at_its_limit_is_read(frame: ClientFrame) -> None:
    assert wire.decode_client(wire.encode_client(frame), LIMITS) == frame


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (opening(prompt=11), "prompt_token_ids: 11 ids, at most 10 allowed; shorten the prompt"),
        (opening(prompt=6, committed=5), "prompt_token_ids: 11 ids, at most 10 allowed; shorten the prompt"),
        (opening(eos=3), "eos_token_ids: 3 ids, at most 2 allowed; send the most likely ones"),
        (
            opening(tokenizer_digest="d" * 129),
            "tokenizer_digest: 129 characters, at most 128 are allowed; send the digest alone",
        ),
        (
            opening(model_digest="d" * 129),
            "model_digest: 129 characters, at most 128 are allowed; send the digest alone",
        ),
        (draft(9), "token_ids: 9 in one Draft, at most 8 are allowed, branches included; send shorter spans"),
        (draft(5, 4), "token_ids: 9 in one Draft, at most 8 are allowed, branches included; send shorter spans"),
        (Close(4, (1,) * 11), "token_ids: 11 ids, at most 10 allowed; send fewer unread tokens"),
    ],
)
def test_a_frame_of_the_device_above_its_limit_is_refused_with_the_count(frame: ClientFrame, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{re.escape(message)}"):
        wire.decode_client(wire.encode_client(frame), LIMITS)


@pytest.mark.parametrize(
    "frame", [Verdict(0, 4, 1, (4,) * 8, 0, 0, (1,) * 8), Continuation(4, (1,) * 10, False), Closed((4,) * 10)]
)
def test_a_frame_of_the_cloud_at_its_limit_is_read(frame: ServerFrame) -> None:
    assert wire.decode_server(wire.encode_server(frame), LIMITS) == frame


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (Verdict(0, 4, 1, (4,) * 9), "deviations: 9 from the cloud, at most 8 are allowed"),
        (Verdict(0, 4, 1, (), 0, 0, (1,) * 9), "further_token_ids: 9 from the cloud, at most 8 are allowed"),
        (Continuation(4, (1,) * 11, False), "token_ids: 11 from the cloud, at most 10 are allowed"),
        (Closed((4,) * 11), "deviations: 11 from the cloud, at most 10 are allowed"),
    ],
)
def test_a_frame_of_the_cloud_above_its_limit_is_refused_with_the_count(frame: ServerFrame, message: str) -> None:
    with pytest.raises(ProtocolViolation, match=f"^{re.escape(message)}"):
        wire.decode_server(wire.encode_server(frame), LIMITS)


def test_a_long_failure_is_cut_and_its_status_kept() -> None:
    """A refusal would hide the reason why the stream ended."""
    data = wire.encode_server(Failure("UNAVAILABLE", "x" * 20_000, 5))
    frame = wire.decode_server(data)
    assert frame == Failure("UNAVAILABLE", "x" * wire.MAX_FAILURE_LENGTH, 5)
    assert wire.decode_server(wire.encode_server(frame)) == frame


@pytest.mark.parametrize("field", ["model", "tokenizer_digest", "model_digest"])
def test_long_names_of_a_cloud_are_refused(field: str) -> None:
    names = {"model": "m", "tokenizer_digest": "t", field: "x" * 129}
    value = Capabilities(1, names["model"], names["tokenizer_digest"], 9, 9, 9, names.get("model_digest", ""))
    with pytest.raises(ProtocolViolation, match=f"^{field}: 129 characters, at most 128 are allowed"):
        wire.decode_capabilities(wire.encode_capabilities(value))


def test_a_cloud_that_reads_no_token_is_refused() -> None:
    """A device would cut its span into empty Drafts, without end."""
    with pytest.raises(ProtocolViolation, match="^max_span_tokens: 0, so that the cloud reads no token"):
        wire.decode_capabilities(wire.encode_capabilities(Capabilities(1, "m", "t", 9, 9, 0)))


# Bytes and fields, before the parser


def field(number: int, data: bytes) -> bytes:
    """Return a field that carries bytes, in protobuf's encoding."""
    size, length = len(data), b""
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


OPEN, DRAFT, CLOSE = 1, 2, 3
PACKED, UNPACKED = field(3, b"\x01" * 2000), b"\x18\x01" * 1000


@pytest.mark.parametrize("tokens", [PACKED, UNPACKED, b"\x1a\x00" * 1000, PACKED + UNPACKED])
def test_a_draft_is_refused_by_its_bytes(tokens: bytes) -> None:
    assert LIMITS.max_draft_bytes == 1024 + 13 * 8
    message = f"^draft: [0-9]+ bytes, at most {LIMITS.max_draft_bytes} are allowed for 8 tokens; send shorter spans"
    with pytest.raises(InvalidRequest, match=message):
        wire.decode_client(field(DRAFT, tokens), LIMITS)
    with pytest.raises(InvalidRequest, match=message):
        wire.decode_client(field(DRAFT, tokens[:600]) + field(DRAFT, tokens[:600]), LIMITS)


def test_the_largest_draft_fits_its_bytes() -> None:
    """Ids, parents and counts take up to five bytes each."""
    branches = tuple(BranchToken(U32 - 1 + index, U32) for index in range(7))
    frame = Draft(U32, U32, (U32,), (1.0,), 2 * U32, U32, U32, branches)
    data = wire.encode_client(frame)
    assert len(data) < LIMITS.max_draft_bytes
    assert wire.decode_client(data, LIMITS) == frame


@pytest.mark.parametrize(
    ("decode", "error"), [(wire.decode_client, InvalidRequest), (wire.decode_server, ProtocolViolation)]
)
def test_a_message_is_refused_by_its_bytes(
    decode: Callable[[bytes, FrameLimits], object], error: type[ChaperoneError]
) -> None:
    with pytest.raises(error, match="^frame: 4097 bytes, at most 4096 are allowed; send shorter texts"):
        decode(b"\xff" * 4097, LIMITS)


@pytest.mark.parametrize("decode", [wire.decode_client, wire.decode_server, wire.decode_capabilities])
@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x00\x12\x00\x1a\x00" * 100_000,  # an Open, a Draft and a Close, again and again
        b"\x0a\x00" * 100_000,
        b"\x78\x01" * 100_000,  # an unknown number
        b"\x7a\x00" * 100_000,  # an unknown text
        b"\x79" + b"\x00" * 8 + b"\x7d" + b"\x00" * 4 + b"\x78\x01" * 63,  # of each kind
    ],
)
def test_a_message_of_many_fields_is_refused(decode: Callable[[bytes], object], data: bytes) -> None:
    """Each new frame would replace the one before it, which is not freed: 40 MiB for a message of 1 MiB."""
    most = 64 if decode is wire.decode_capabilities else 16  # a field for each quota
    words = f"^frame: it has more than {most} fields; send one frame in each message"
    with pytest.raises(ProtocolViolation, match=words):
        decode(data)


def test_fields_of_newer_versions_are_read_over() -> None:
    frame = Close(5, (1, 2))
    newer = b"\x78\x01" + b"\x79" + b"\x00" * 8 + b"\x7d" + b"\x00" * 4 + b"\xfa\x7f\x02hi"
    assert wire.decode_client(newer + wire.encode_client(frame) + newer) == frame


@pytest.mark.parametrize("depth", [1, 50, 99, 101, 10_000])
def test_nesting_is_refused_at_every_depth(depth: int) -> None:
    """No message of ours nests deeper than three; the parser stops at 100, before its stack does."""
    groups = b"\x7b" * depth + b"\x7c" * depth
    with pytest.raises(ProtocolViolation, match="^frame: a field is a group, which is not part of this protocol"):
        wire.decode_client(groups)
    inner = field(CLOSE, groups)
    if depth > 100:
        with pytest.raises(ProtocolViolation, match="^frame: [0-9]+ bytes that are not a SuperviseRequest"):
            wire.decode_client(inner)
    else:
        assert wire.decode_client(inner) == Close(0, ())


@pytest.mark.parametrize("kind", [4, 6, 7])
def test_wire_types_that_protobuf_lacks_are_refused(kind: int) -> None:
    with pytest.raises(ProtocolViolation, match="^frame: [0-9]+ bytes that are not a SuperviseRequest"):
        wire.decode_client(bytes([0x78 | kind]) + b"\x0a\x00\x12\x00" * 100)


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x80", b"\x0a" + b"\xff" * 20, b"\x80", b"\x79\x00", b"\x12\xff\x01"])
def test_cut_off_fields_are_left_to_the_parser(data: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="^frame: [0-9]+ bytes that are not a SuperviseRequest"):
        wire.decode_client(data)


@pytest.mark.parametrize(
    ("number", "tokens"),
    [(OPEN, field(7, b"\x01" * 900_000)), (DRAFT, field(3, b"\x01" * 900_000)), (CLOSE, field(2, b"\x01" * 900_000))],
)
def test_a_refused_frame_takes_no_memory(number: int, tokens: bytes) -> None:
    """As values, the tokens would take 7 MB, or 32 MB if the ids are large."""
    data = field(number, field(2, b"s") + tokens if number == OPEN else tokens)
    limits = FrameLimits(max_text_tokens=1000, max_span_tokens=100_000)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="900000 ids|900000 in one Draft|draft: 90000[0-9] bytes"):
            wire.decode_client(data, limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000

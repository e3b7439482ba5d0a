"""Encodings on the wire: they survive, and frames that break the specification are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_common import wire
from chaperone_common.conditioning import Encoding
from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Capabilities, Encoded, EncodingRequest, Open
from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb
from chaperone_common.types import SamplingParams, SessionId

U32 = st.integers(0, 2**32 - 1)
DIGEST = "sha256:" + "0" * 64


def encoded(tokens: int = 2, width: int = 3, start: int = 7, seed: int = 0, digest: bytes = b"") -> Encoded:
    rows = np.random.default_rng(seed).standard_normal((tokens, width)).astype(np.float32)
    return Encoded(Encoding.of(rows, start), digest)


@given(
    frame=st.builds(
        encoded, st.integers(1, 256), st.integers(1, 40), U32, U32, st.just(b"") | st.binary(min_size=16, max_size=16)
    )
)
def test_rows_survive_bit_for_bit(frame: Encoded) -> None:
    back = wire.decode_server(wire.encode_server(frame))
    assert back == frame
    assert isinstance(back, Encoded)
    assert back.rows.digest() == frame.rows.digest()


@given(request=st.none() | st.builds(EncodingRequest, st.text(max_size=80), U32))
def test_a_request_survives(request: EncodingRequest | None) -> None:
    opening = Open(SessionId("s"), "d", SamplingParams(), 5, (), (1, 2), encoding=request)
    assert wire.decode_client(wire.encode_client(opening)) == opening


def test_capabilities_name_the_projector() -> None:
    value = Capabilities(1, "m", "d", 5, 6, 7, projector_digest=DIGEST, max_encoded_tokens=8192)
    assert wire.decode_capabilities(wire.encode_capabilities(value)) == value


def test_a_frame_is_little_larger_than_its_rows() -> None:
    frame = encoded(64, 896)
    assert len(wire.encode_server(frame)) < 64 * (896 + 4) + 40


def _nan(message: pb.Encoded) -> None:
    message.scales[0] = float("nan")


def _negative(message: pb.Encoded) -> None:
    message.scales[1] = -0.5


def _infinite(message: pb.Encoded) -> None:
    message.scales[1] = float("inf")


def _enormous(message: pb.Encoded) -> None:
    message.scales[1] = 3e38  # finite, and its products are not


def _of_another_type(message: pb.Encoded) -> None:
    message.dtype = pb.Encoded.DTYPE_UNSPECIFIED


def _wider(message: pb.Encoded) -> None:
    message.width = 4


def _of_no_width(message: pb.Encoded) -> None:
    message.width = 0


def _too_wide(message: pb.Encoded) -> None:
    message.width = (1 << 14) + 1


def _without_rows(message: pb.Encoded) -> None:
    del message.scales[:]
    message.values = b""


def _of_too_many_rows(message: pb.Encoded) -> None:
    message.scales.extend([1.0] * 255)


def _cut(message: pb.Encoded) -> None:
    message.values = message.values[:-1]


def _with_a_short_digest(message: pb.Encoded) -> None:
    message.digest = b"x" * 15


REFUSED: list[tuple[Callable[[pb.Encoded], None], str]] = [
    (_nan, "scales: one is negative, or no finite number"),
    (_negative, "scales: one is negative, or no finite number"),
    (_infinite, "scales: one is negative, or no finite number"),
    (_enormous, r"scales: 3e\+38, at most 1.09951e\+12 are allowed"),
    (_of_another_type, "dtype: 0 of encoded rows is unknown"),
    (_wider, "values: 6 bytes for 2 rows of 4"),
    (_of_no_width, "width: 0 of encoded rows, 1 to 16384"),
    (_too_wide, "width: 16385 of encoded rows, 1 to 16384"),
    (_without_rows, "scales: 0 encoded rows, 1 to 256 are allowed"),
    (_of_too_many_rows, "scales: 257 encoded rows, 1 to 256 are allowed"),
    (_cut, "values: 5 bytes for 2 rows of 3"),
    (_with_a_short_digest, "digest: 15 bytes, not 16"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED, ids=[spoil.__name__.strip("_") for spoil, _ in REFUSED])
def test_a_frame_that_breaks_the_rules_is_refused(spoil: Callable[[pb.Encoded], None], message: str) -> None:
    response = pb.SuperviseResponse.FromString(wire.encode_server(encoded()))
    spoil(response.encoded)
    with pytest.raises(ProtocolViolation, match=message):
        wire.decode_server(response.SerializeToString())

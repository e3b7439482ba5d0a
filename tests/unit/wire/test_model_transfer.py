"""The messages of FetchModel: they arrive unchanged, and nothing else is taken."""

from __future__ import annotations

import pytest

from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.frames import FetchModel
from chaperone_common.wire import (
    MAX_MODEL_DATA_BYTES,
    decode_fetch_model,
    decode_model_data,
    encode_fetch_model,
    encode_model_data,
)


@pytest.mark.parametrize(
    "request_", [FetchModel("tiny"), FetchModel("tiny", "model.onnx.data", "0" * 64, (1 << 64) - 1), FetchModel("")]
)
def test_a_request_arrives_unchanged(request_: FetchModel) -> None:
    assert decode_fetch_model(encode_fetch_model(request_)) == request_


@pytest.mark.parametrize("size", [0, 1, MAX_MODEL_DATA_BYTES])
def test_bytes_arrive_unchanged(size: int) -> None:
    assert decode_model_data(encode_model_data(b"x" * size)) == b"x" * size


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (encode_fetch_model(FetchModel("x" * 129)), InvalidRequest, "pair: 129 characters, at most 128 are allowed"),
        (encode_fetch_model(FetchModel("x" * 5000)), InvalidRequest, "frame: 50.. bytes, at most 4096 are allowed"),
        (b"\x0a\x01x" * 17, ProtocolViolation, "it has more than 16 fields"),
        (b"\xff", ProtocolViolation, "bytes that are not a FetchModelRequest"),
    ],
)
def test_a_request_that_no_device_sends_is_refused(data: bytes, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        decode_fetch_model(data)


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(ProtocolViolation, match="131073 bytes from the cloud, at most 131072 are allowed"):
        decode_model_data(encode_model_data(bytes(MAX_MODEL_DATA_BYTES + 1)))

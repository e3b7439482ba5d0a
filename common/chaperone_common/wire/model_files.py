"""Files of the device's model on their way from the cloud, between values and protobuf."""

from __future__ import annotations

from chaperone_common.errors import InvalidRequest, ProtocolViolation
from chaperone_common.frames import FetchModel, FrameLimits
from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb
from chaperone_common.wire.checks import check_names, fields, parse

MAX_MODEL_DATA_BYTES = 128 << 10  # of one message of FetchModel
_REQUEST_LIMITS = FrameLimits(max_message_bytes=4 << 10)
_DATA_LIMITS = FrameLimits(max_message_bytes=MAX_MODEL_DATA_BYTES + 1024)


def encode_fetch_model(request: FetchModel) -> bytes:
    """Serialise the request of FetchModel."""
    return pb.FetchModelRequest(
        pair=request.pair, file=request.file, sha256=request.sha256, offset=request.offset
    ).SerializeToString()


def decode_fetch_model(data: bytes) -> FetchModel:
    """Parse the request of FetchModel; raises InvalidRequest or ProtocolViolation."""
    fields(data, _REQUEST_LIMITS, InvalidRequest)
    message = parse(pb.FetchModelRequest(), data)
    check_names(message, InvalidRequest, "pair", "file", "sha256")
    return FetchModel(message.pair, message.file, message.sha256, message.offset)


def encode_model_data(data: bytes) -> bytes:
    """Serialise the next bytes of a file."""
    return pb.FetchModelResponse(data=data).SerializeToString()


def decode_model_data(data: bytes) -> bytes:
    """Parse the next bytes of a file, or none before a refusal; raises ProtocolViolation."""
    fields(data, _DATA_LIMITS, ProtocolViolation)
    content: bytes = parse(pb.FetchModelResponse(), data).data
    if len(content) > MAX_MODEL_DATA_BYTES:
        raise ProtocolViolation(
            f"data: {len(content)} bytes from the cloud, at most {MAX_MODEL_DATA_BYTES} are allowed; use another cloud"
        )
    return content

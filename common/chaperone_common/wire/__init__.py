"""Conversion of frames between values and protobuf; no other package knows the generated classes.

Decoding trusts nothing: anything that the specification does not allow raises ProtocolViolation or InvalidRequest.
A number in Python takes ten times its bytes on the wire, so sizes are checked before any value is made of a message.
"""

from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb
from chaperone_common.wire.capabilities import decode_capabilities, encode_capabilities, encode_capabilities_request
from chaperone_common.wire.checks import DEFAULT_LIMITS
from chaperone_common.wire.frames import (
    MAX_FAILURE_LENGTH,
    decode_client,
    decode_server,
    encode_client,
    encode_server,
)
from chaperone_common.wire.model_files import (
    MAX_MODEL_DATA_BYTES,
    decode_fetch_model,
    decode_model_data,
    encode_fetch_model,
    encode_model_data,
)

SERVICE = pb.DESCRIPTOR.services_by_name["SupervisionService"].full_name
SUPERVISE = "Supervise"
GET_CAPABILITIES = "GetCapabilities"
FETCH_MODEL = "FetchModel"
RETRY_AFTER = "chaperone-retry-after-ms"  # trailing metadata of a refused call

__all__ = [
    "DEFAULT_LIMITS",
    "FETCH_MODEL",
    "GET_CAPABILITIES",
    "MAX_FAILURE_LENGTH",
    "MAX_MODEL_DATA_BYTES",
    "RETRY_AFTER",
    "SERVICE",
    "SUPERVISE",
    "decode_capabilities",
    "decode_client",
    "decode_fetch_model",
    "decode_model_data",
    "decode_server",
    "encode_capabilities",
    "encode_capabilities_request",
    "encode_client",
    "encode_fetch_model",
    "encode_model_data",
    "encode_server",
]

"""Rows of an encoding, between values and protobuf."""

from __future__ import annotations

import numpy as np

from chaperone_common.conditioning import DIGEST_BYTES, Encoding
from chaperone_common.errors import ProtocolViolation
from chaperone_common.frames import Encoded, FrameLimits
from chaperone_common.pb.chaperone.v1 import supervision_pb2 as pb

_REMEDY = "use another cloud"
_LARGEST_SCALE = 2.0**40  # no trained row comes near it, and the squares of the widest such row are finite in float32


def encoded_message(frame: Encoded) -> pb.Encoded:
    """Return the message of a frame."""
    rows = frame.rows
    return pb.Encoded(
        start=rows.start,
        width=rows.width,
        dtype=pb.Encoded.DTYPE_INT8,
        scales=rows.scales.tolist(),
        values=rows.values.tobytes(),
        digest=frame.digest,
    )


def parse_encoded(message: pb.Encoded, limits: FrameLimits) -> Encoded:
    """Return the frame of a message; raises ProtocolViolation."""
    rows, width = len(message.scales), message.width
    if message.dtype != pb.Encoded.DTYPE_INT8:
        raise ProtocolViolation(f"dtype: {message.dtype} of encoded rows is unknown; {_REMEDY}")
    if not 0 < rows <= limits.max_encoded_rows:
        raise ProtocolViolation(f"scales: {rows} encoded rows, 1 to {limits.max_encoded_rows} are allowed; {_REMEDY}")
    if not 0 < width <= limits.max_encoded_width:
        raise ProtocolViolation(f"width: {width} of encoded rows, 1 to {limits.max_encoded_width}; {_REMEDY}")
    if len(message.values) != rows * width:
        raise ProtocolViolation(f"values: {len(message.values)} bytes for {rows} rows of {width}; {_REMEDY}")
    if len(message.digest) not in (0, DIGEST_BYTES):
        raise ProtocolViolation(f"digest: {len(message.digest)} bytes, not {DIGEST_BYTES}; {_REMEDY}")
    scales = np.array(message.scales, np.float32)
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ProtocolViolation(f"scales: one is negative, or no finite number; {_REMEDY}")
    if scales.max() > _LARGEST_SCALE:
        raise ProtocolViolation(f"scales: {scales.max():g}, at most {_LARGEST_SCALE:g} are allowed; {_REMEDY}")
    values = np.frombuffer(message.values, np.int8).reshape(rows, width)
    return Encoded(Encoding(scales, values, message.start), message.digest)

"""Checks of a message before and after it is parsed: its bytes, its fields, and the lengths of its lists and names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from chaperone_common.errors import ChaperoneError, InvalidRequest, ProtocolViolation
from chaperone_common.frames import FrameLimits

MAX_NAME_LENGTH = 128  # characters of a digest, or of the name of a model
MAX_FIELDS = 16  # of one message: a frame, and the additions of newer versions
MAX_CAPABILITIES = 64  # fields of the capabilities, one for each quota
DEFAULT_LIMITS = FrameLimits()

# Wire types of protobuf: a number, a length with that many bytes, nested fields up to an end mark, and 8 or 4 bytes.
_VARINT, _LENGTH, _GROUP, _FIXED = 0, 2, 3, {1: 8, 5: 4}

M = TypeVar("M", bound=Message)


def fields(
    data: bytes, limits: FrameLimits, too_large: type[ChaperoneError], most: int = MAX_FIELDS
) -> list[tuple[int, int]]:
    """Return number and size of the outermost fields of a message, without reading them.

    There must be few: protobuf makes an object of 40 times its size for each frame that replaces another. Bytes that
    are no message end the list, and the parser refuses them.
    """
    if len(data) > limits.max_message_bytes:
        raise too_large(f"frame: {len(data)} bytes, at most {limits.max_message_bytes} are allowed; send shorter texts")
    found: list[tuple[int, int]] = []
    end = 0
    while end < len(data):
        if len(found) == most:
            raise ProtocolViolation(f"frame: it has more than {most} fields; send one frame in each message")
        key, start = _varint(data, end)
        kind = key & 7
        if kind == _LENGTH:
            length, start = _varint(data, start)
            end = start + length
        elif kind == _VARINT:
            _, end = _varint(data, start)
        elif kind in _FIXED:
            end = start + _FIXED[kind]
        elif kind == _GROUP:
            raise ProtocolViolation("frame: a field is a group, which is not part of this protocol; send a message")
        else:
            break
        found.append((key >> 3, end - start))
    return found


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """Return a number of up to ten bytes, and the index after it. A number that the data cuts off ends with them."""
    value = 0
    for place, byte in enumerate(data[start : start + 10]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, start + place + 1
    return value, start + 10


def check_count(field: str, count: int, most: int, remedy: str) -> None:
    """Raise InvalidRequest if a device's list has more than `most` ids."""
    if count > most:
        raise InvalidRequest(f"{field}: {count} ids, at most {most} allowed; {remedy}")


def bounded(field: str, values: Sequence[int], most: int) -> tuple[int, ...]:
    """Return a list of the cloud as a tuple; raises ProtocolViolation if it has more than `most` numbers."""
    if len(values) > most:
        raise ProtocolViolation(f"{field}: {len(values)} from the cloud, at most {most} are allowed; use another cloud")
    return tuple(values)


def check_names(message: Message, error: type[ChaperoneError], *fields: str) -> None:
    """Raise `error` for the first of these fields whose text is too long."""
    for field in fields:
        if (length := len(getattr(message, field))) > MAX_NAME_LENGTH:
            raise error(f"{field}: {length} characters, at most {MAX_NAME_LENGTH} are allowed; send the digest alone")


def parse(message: M, data: bytes) -> M:
    """Parse bytes into `message`, and return it; raises ProtocolViolation."""
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolViolation(f"frame: {len(data)} bytes that are not a {type(message).__name__}: {error}") from None
    return message

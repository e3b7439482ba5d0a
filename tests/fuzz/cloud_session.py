"""Any bytes, read as the frames of one stream, leave the cloud's session whole, or are refused.

The first byte chooses how the model chooses. Each frame follows its length in two bytes, low byte first; a length of 0
lets the cloud write one token of its takeover.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chaperone_common import wire
from chaperone_common.errors import ChaperoneError
from chaperone_common.frames import ClientFrame, Open
from tests.support.session.attacked_cloud import AttackedCloud

MOST_FRAMES = 64


def check(data: bytes) -> None:
    """Raise AssertionError, or what a session must not raise, for bytes that break the rule."""
    seed = data[0] if data else 0
    frames = iter(frames_of(data[1:]))
    try:
        opening = next(frames, None)
        if isinstance(opening, Open):
            cloud = AttackedCloud(opening, lambda number: 1 + (seed + number) * (1 + seed // 3) % 5)
            for frame in frames:
                cloud.take(frame)
    except ChaperoneError as refusal:
        if not str(refusal):
            raise AssertionError("a refusal has a reason") from refusal


def frames_of(data: bytes) -> Iterator[ClientFrame | None]:
    """Yield the frames; raise ChaperoneError at the first that is refused."""
    for _ in range(MOST_FRAMES):
        if len(data) < 2:
            return
        length = int.from_bytes(data[:2], "little")
        yield wire.decode_client(data[2 : 2 + length]) if length else None
        data = data[2 + length :]


def bytes_of(frames: Sequence[ClientFrame | None], seed: int = 0) -> bytes:
    """Return the bytes that are read as these frames."""
    parts = [b"" if frame is None else wire.encode_client(frame) for frame in frames]
    return bytes([seed]) + b"".join(len(part).to_bytes(2, "little") + part for part in parts)

"""Any bytes, read as what a device does on one stream, leave the cloud's session whole, or are refused.

Every byte is a small choice, so that a changed byte is another stream, and most streams reach the session. `Moves`
writes the choices in the order in which they are read. Each frame is encoded and decoded.
"""

from __future__ import annotations

from collections.abc import Iterable

from chaperone_common import wire
from chaperone_common.errors import ChaperoneError
from chaperone_common.frames import ClientFrame, Close, Draft, Open
from chaperone_common.token_tree import BranchToken
from chaperone_common.types import SamplingParams, SessionId
from tests.support.session.attacked_cloud import VOCABULARY, AttackedCloud

MOST_MOVES = 64
DRAFT, WRITE, CLOSE, RAW = 0, 4, 5, 6  # the first byte of a move, modulo 7; 0 to 3 are Drafts
_FAR = 127  # an offset that stands for 2**31


def check(data: bytes) -> None:
    """Raise AssertionError, or what a session must not raise, for bytes that break the rule."""
    choices = _Choices(data)
    seed = choices.below(256)
    try:
        cloud = AttackedCloud(choices.opening(), lambda number: 1 + (seed + number) * (1 + seed // 8) % 5)
        for _ in range(MOST_MOVES):
            if choices.spent or cloud.ended:
                return
            frame = choices.move(len(cloud.session.text), cloud.session.revision)
            cloud.take(None if frame is None else wire.decode_client(wire.encode_client(frame)))
    except ChaperoneError as refusal:
        if not str(refusal):
            raise AssertionError("a refusal has a reason") from refusal


class _Choices:
    """Bytes that are read as choices. After the last one all are 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._next = 0

    @property
    def spent(self) -> bool:
        return self._next >= len(self._data)

    def below(self, bound: int) -> int:
        byte = 0 if self.spent else self._data[self._next]
        self._next += 1
        return byte % bound

    def offset(self) -> int:
        byte = self.below(256)
        return 2**31 if byte == _FAR else byte - 256 * (byte > _FAR)

    def tokens(self, most: int) -> tuple[int, ...]:
        """Return up to `most` ids; two of the choices are outside the vocabulary."""
        return tuple(self.below(VOCABULARY + 2) for _ in range(self.below(most + 1)))

    def opening(self) -> Open:
        limit = self.below(40)
        eos, prompt, committed = self.tokens(2), self.tokens(5), self.tokens(40)
        frame = Open(SessionId("s"), "", SamplingParams(), limit, eos, prompt, committed)
        decoded = wire.decode_client(wire.encode_client(frame))
        assert decoded == frame
        return frame

    def move(self, length: int, revision: int) -> ClientFrame | None:
        """Return the next frame, near the end of a text of `length` tokens; None lets the cloud write."""
        kind = self.below(7)
        if kind == WRITE:
            return None
        if kind == RAW:
            size = self.below(256)
            piece = self._data[self._next : self._next + size]
            self._next += size
            return wire.decode_client(piece)
        start = max(0, length + self.offset())
        chain = self.tokens(40)
        if kind == CLOSE:
            return Close(start, chain)
        final, written = start + max(0, self.offset()), self.below(12)
        latest = max(0, revision + self.offset())
        places = range(self.below(5))
        branches = [
            BranchToken(start - 1 + self.below(len(chain) + place + 1), self.below(VOCABULARY + 2)) for place in places
        ]
        return Draft(latest, start, chain, (), final, written, branches=tuple(branches) if start else ())


class Moves:
    """Writes a stream as choices."""

    def __init__(
        self,
        seed: int = 0,
        *,
        limit: int = 20,
        eos: Iterable[int] = (0,),
        prompt: Iterable[int] = (1, 2),
        committed: Iterable[int] = (),
    ) -> None:
        self.data = bytes([seed, limit]) + _list(eos) + _list(prompt) + _list(committed)

    def draft(
        self,
        offset: int,
        *token_ids: int,
        final: int = 0,
        more: int = 0,
        revision: int = 0,
        branches: Iterable[tuple[int, int]] = (),
    ) -> Moves:
        """Add a Draft: `offset` from the end of the text, `final` from there; a parent counts from the one before."""
        pairs = [*branches]
        tail = bytes([final, more, revision % 256, len(pairs), *(value for pair in pairs for value in pair)])
        self.data += bytes([DRAFT, offset % 256]) + _list(token_ids) + tail
        return self

    def close(self, offset: int, *token_ids: int) -> Moves:
        """Add a Close, `offset` from the end of the text."""
        self.data += bytes([CLOSE, offset % 256]) + _list(token_ids)
        return self

    def writes(self, times: int) -> Moves:
        """Let the cloud write tokens of its takeover."""
        self.data += bytes([WRITE]) * times
        return self

    def raw(self, frame: ClientFrame) -> Moves:
        """Add a frame as it is on the wire."""
        data = wire.encode_client(frame)
        self.data += bytes([RAW, len(data)]) + data
        return self


def _list(token_ids: Iterable[int]) -> bytes:
    values = bytes(token_ids)
    return bytes([len(values)]) + values

"""One direction of one TCP connection: what one socket has sent waits, crosses the link, and is written to the other.

What crosses is either bytes or a control segment, which is an action taken when it comes out: opening, end of the
stream, reset. They keep their order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from link_emulator.alarm import Alarm
from link_emulator.model import Direction

# What one direction of one connection holds at most, as a TCP sender and receiver would (Linux: 4 and 6 MiB).
WINDOW_BYTES = 4 * 1024 * 1024
UNSENT_HIGH_BYTES = 64 * 1024
WRITE_BUFFER_BYTES = 256 * 1024


class Pipe:
    """Carries one direction of a connection; `step` does all that is due."""

    def __init__(self, direction: Direction, flow: int, now_s: Callable[[], float], alarm: Alarm, origin_s: float):
        self._direction = direction
        self._flow = flow
        self._now_s = now_s
        self._alarm = alarm
        self._origin_s = origin_s
        self._source: asyncio.Transport | None = None
        self._sink: asyncio.Transport | None = None
        self._unsent = bytearray()
        self._on_the_way: deque[tuple[float, bytes | Callable[[], None]]] = deque()
        self._on_the_way_bytes = 0
        self._opened = False
        self._blocked = False
        self._source_paused = False
        self._at_end: Callable[[], None] | None = None
        self._wake_s = float("inf")
        self._closed = False

    def open(self) -> None:
        """From now on data may be handed to the link."""
        self._opened = True
        self.step()

    def feed(self, source: asyncio.Transport, data: bytes) -> None:
        """Take what the source has sent; stops reading from it when too much waits."""
        self._source = source
        self._unsent += data
        if len(self._unsent) > UNSENT_HIGH_BYTES and not self._source_paused:
            self._source_paused = True
            source.pause_reading()
        self.step()

    def end(self, action: Callable[[], None]) -> None:
        """The source sends no more; the action is taken when all before it has come out."""
        self._at_end = action
        self.step()

    def control(self, action: Callable[[], None]) -> None:
        """Send a control segment behind what was handed in so far, ahead of what still waits for room."""
        now_s = self._now_s()
        self._on_the_way.append((self._direction.arrival(now_s, 0, self._flow), action))
        self.step()

    def connect(self, sink: asyncio.Transport) -> None:
        """Say where the bytes come out."""
        self._sink = sink

    def block(self) -> None:
        """Let nothing come out for now: the sink is full, or not there yet."""
        self._blocked = True

    @property
    def blocked(self) -> bool:
        """Whether nothing may come out for now."""
        return self._blocked

    def unblock(self) -> None:
        """Let it come out again."""
        self._blocked = False
        self.step()

    def put_off(self, seconds: float) -> None:
        """Let everything on its way arrive so much later."""
        self._on_the_way = deque((arrival_s + seconds, item) for arrival_s, item in self._on_the_way)

    def drop_unsent(self) -> None:
        """Forget what was not handed to the link."""
        self._unsent.clear()
        self._at_end = None

    def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._unsent.clear()
        self._on_the_way.clear()

    def step(self) -> None:
        """Hand in what there is room for, let out what has arrived, and plan the next step."""
        while not self._closed:
            now_s = self._now_s()
            room_s = self._hand_in(now_s)
            if not self._let_out(now_s):
                self._plan(room_s)
                return

    def _hand_in(self, now_s: float) -> float:
        """Returns when there is room for more; infinite if nothing waits for room."""
        while self._opened and self._unsent and self._on_the_way_bytes < WINDOW_BYTES:
            size = min(len(self._unsent), self._direction.piece_bytes)
            room_s = self._direction.room_at(now_s, size)
            if room_s > now_s:
                return room_s
            piece = bytes(memoryview(self._unsent)[:size])
            del self._unsent[:size]
            self._on_the_way.append((self._direction.arrival(now_s, size, self._flow), piece))
            self._on_the_way_bytes += size
        if self._opened and not self._unsent and self._at_end is not None:
            self._on_the_way.append((self._direction.arrival(now_s, 0, self._flow), self._at_end))
            self._at_end = None
        if self._source_paused and self._source is not None and len(self._unsent) <= UNSENT_HIGH_BYTES // 2:
            self._source_paused = False
            if not self._source.is_closing():
                self._source.resume_reading()
        return float("inf")

    def _let_out(self, now_s: float) -> bool:
        """Whether something came out, so that there may be room for more."""
        data: list[bytes] = []
        moved = False
        while self._on_the_way and self._on_the_way[0][0] <= now_s and not self._blocked:
            _, item = self._on_the_way.popleft()
            moved = True
            if isinstance(item, bytes):
                self._on_the_way_bytes -= len(item)
                data.append(item)
                if len(data) * len(item) < WRITE_BUFFER_BYTES:
                    continue
            self._write(data)
            if not isinstance(item, bytes):
                item()
        self._write(data)
        return moved

    def _write(self, data: list[bytes]) -> None:
        if data and self._sink is not None and not self._sink.is_closing():
            self._sink.write(b"".join(data))
        data.clear()

    def _plan(self, room_s: float) -> None:
        due_s = self._on_the_way[0][0] if self._on_the_way and not self._blocked else float("inf")
        wake_s = min(due_s, room_s)
        if wake_s < self._wake_s:
            self._wake_s = wake_s
            self._alarm.at(self._origin_s + wake_s, self._wake)

    def _wake(self) -> None:
        self._wake_s = float("inf")
        self.step()

"""One direction of one TCP connection: bytes of one socket wait, cross the link, and are written to the other socket.

Control segments (opening, end of the stream, reset) cross the link as well. Each is an action that is run on its
arrival. Bytes and control segments keep their order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from link_emulator.alarm import Alarm
from link_emulator.model import Direction

# Most bytes on their way in one direction of a connection, as with the buffers of TCP (Linux: 4 and 6 MiB).
WINDOW_BYTES = 4 * 1024 * 1024
UNSENT_HIGH_BYTES = 64 * 1024
WRITE_BUFFER_BYTES = 256 * 1024


class Pipe:
    """One direction of a connection. `step` does all work that is due."""

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
        """Allow data to enter the link from now on."""
        self._opened = True
        self.step()

    def feed(self, source: asyncio.Transport, data: bytes) -> None:
        """Take data from the source. Stop reading from it while too much data waits."""
        self._source = source
        self._unsent += data
        if len(self._unsent) > UNSENT_HIGH_BYTES and not self._source_paused:
            self._source_paused = True
            source.pause_reading()
        self.step()

    def end(self, action: Callable[[], None]) -> None:
        """Note the end of the source's stream. Run the action after all data has arrived."""
        self._at_end = action
        self.step()

    def control(self, action: Callable[[], None]) -> None:
        """Send a control segment after all data in the link, and before data that waits for room."""
        now_s = self._now_s()
        self._on_the_way.append((self._direction.arrival(now_s, 0, self._flow), action))
        self.step()

    def connect(self, sink: asyncio.Transport) -> None:
        """Set the socket to which bytes are written."""
        self._sink = sink

    def block(self) -> None:
        """Stop writing for now: the sink is full, or not connected yet."""
        self._blocked = True

    @property
    def blocked(self) -> bool:
        """True while nothing may be written."""
        return self._blocked

    def unblock(self) -> None:
        """Write again."""
        self._blocked = False
        self.step()

    def put_off(self, seconds: float) -> None:
        """Delay everything on its way by this time."""
        self._on_the_way = deque((arrival_s + seconds, item) for arrival_s, item in self._on_the_way)

    def drop_unsent(self) -> None:
        """Drop all data that has not entered the link."""
        self._unsent.clear()
        self._at_end = None

    def close(self) -> None:
        """Drop all data, and stop."""
        self._closed = True
        self._unsent.clear()
        self._on_the_way.clear()

    def step(self) -> None:
        """Send data while there is room, write all that has arrived, and plan the next step."""
        while not self._closed:
            now_s = self._now_s()
            room_s = self._send(now_s)
            if not self._deliver(now_s):
                self._plan(room_s)
                return

    def _send(self, now_s: float) -> float:
        """Send data, and return the time at which there is room for more; infinite if no data waits."""
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

    def _deliver(self, now_s: float) -> bool:
        """Write all that has arrived; return whether there was anything, so that there may be room again."""
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

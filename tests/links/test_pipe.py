"""A pipe on a virtual clock: its content is bounded, and all bytes leave in order and on time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import cast

from link_emulator.alarm import Alarm
from link_emulator.model import Direction
from link_emulator.pipe import UNSENT_HIGH_BYTES, WINDOW_BYTES, Pipe
from link_emulator.profile import DirectionProfile, Profile

BLOCK = 10_000


class VirtualAlarm:
    """Clock and alarm in one; `pass_until` lets time pass from callback to callback."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when_s: float, callback: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._waiting, (when_s, self._count, callback))

    def pass_until(self, time_s: float) -> None:
        while self._waiting and self._waiting[0][0] <= time_s:
            self.now_s, _, callback = heapq.heappop(self._waiting)
            callback()
        self.now_s = time_s


class Socket:
    """The part of a transport that a pipe uses."""

    def __init__(self, alarm: VirtualAlarm) -> None:
        self.alarm = alarm
        self.written: list[tuple[float, bytes]] = []
        self.paused = False

    def write(self, data: bytes) -> None:
        self.written.append((self.alarm.now_s, data))

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def is_closing(self) -> bool:
        return False

    @property
    def content(self) -> bytes:
        return b"".join(data for _, data in self.written)


class PipeHarness:
    """A pipe between two sockets."""

    def __init__(self, way: DirectionProfile) -> None:
        self.alarm = VirtualAlarm()
        direction = Direction(Profile(description="test", up=way), "up", 0)
        self.pipe = Pipe(direction, 0, lambda: self.alarm.now_s, cast(Alarm, self.alarm), 0.0)
        self.source, self.sink = Socket(self.alarm), Socket(self.alarm)
        self.pipe.connect(cast(asyncio.Transport, self.sink))
        self.fed = bytearray()

    def feed(self, size: int = BLOCK) -> None:
        data = bytes((len(self.fed) // BLOCK + index) % 251 for index in range(size))
        self.fed += data
        self.pipe.feed(cast(asyncio.Transport, self.source), data)

    def feed_until_paused(self) -> None:
        while not self.source.paused:
            self.feed()


def test_a_slow_link_pauses_its_source_and_resumes_it() -> None:
    harness = PipeHarness(DirectionProfile(rate_kbit_s=800, queue_kbytes=16))  # 100 bytes a millisecond
    harness.pipe.open()
    harness.feed_until_paused()
    assert len(harness.fed) <= UNSENT_HIGH_BYTES + 16_000 + 2 * BLOCK
    harness.alarm.pass_until(0.7)
    assert not harness.source.paused
    harness.feed_until_paused()
    harness.alarm.pass_until(60.0)
    assert harness.sink.content == harness.fed


def test_a_full_sink_stops_the_source() -> None:
    harness = PipeHarness(DirectionProfile())
    harness.pipe.open()
    harness.pipe.block()
    harness.feed_until_paused()
    assert WINDOW_BYTES <= len(harness.fed) <= WINDOW_BYTES + UNSENT_HIGH_BYTES + 2 * BLOCK + 64 * 1024
    assert harness.sink.written == []
    harness.pipe.unblock()
    assert not harness.source.paused
    assert harness.sink.content == harness.fed


def test_bytes_leave_at_the_times_of_the_model() -> None:
    harness = PipeHarness(DirectionProfile(delay_ms=100, rate_kbit_s=12))  # 1500 bytes a second
    harness.pipe.open()
    harness.feed(2 * 1448)
    harness.alarm.pass_until(10.0)
    assert [(round(time_s, 9), len(data)) for time_s, data in harness.sink.written] == [(1.1, 1448), (2.1, 1448)]


def test_nothing_is_sent_before_the_end_of_the_handshake() -> None:
    harness = PipeHarness(DirectionProfile(delay_ms=100))
    harness.feed()
    harness.alarm.pass_until(5.0)
    assert harness.sink.written == []
    harness.pipe.open()
    harness.alarm.pass_until(10.0)
    assert [time_s for time_s, _ in harness.sink.written] == [5.1]


def test_control_segments_keep_their_place() -> None:
    harness = PipeHarness(DirectionProfile(delay_ms=100, jitter_ms=90, jitter="exponential"))
    harness.pipe.open()
    seen: list[tuple[str, int]] = []
    for _ in range(20):
        harness.feed(100)
        harness.pipe.control(lambda: seen.append(("control", len(harness.sink.content))))
    harness.pipe.end(lambda: seen.append(("end", len(harness.sink.content))))
    harness.alarm.pass_until(100.0)
    assert seen == [*(("control", 100 * (number + 1)) for number in range(20)), ("end", 2000)]


def test_the_end_of_a_stream_waits_for_queued_bytes() -> None:
    harness = PipeHarness(DirectionProfile(rate_kbit_s=80, queue_kbytes=4))
    harness.pipe.open()
    ended: list[int] = []
    harness.feed(30_000)
    harness.pipe.end(lambda: ended.append(len(harness.sink.content)))
    harness.alarm.pass_until(100.0)
    assert ended == [30_000]


def test_an_outage_delays_bytes_in_flight() -> None:
    harness = PipeHarness(DirectionProfile(delay_ms=100))
    harness.pipe.open()
    harness.feed(100)
    harness.alarm.pass_until(0.05)
    harness.pipe.put_off(2.0)
    harness.alarm.pass_until(2.09)
    assert harness.sink.written == []
    harness.alarm.pass_until(3.0)
    assert [round(time_s, 9) for time_s, _ in harness.sink.written] == [2.1]


def test_a_closed_pipe_drops_its_bytes() -> None:
    harness = PipeHarness(DirectionProfile(delay_ms=100))
    harness.pipe.open()
    harness.feed()
    harness.pipe.close()
    harness.alarm.pass_until(5.0)
    assert harness.sink.written == []

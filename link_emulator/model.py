"""The model of a link: the arrival time of each piece of bytes, from profile, seed and the calls so far.

It has no clock and no I/O. The proxy passes the time of the machine, a simulator its own. Times are seconds since the
link began. `docs/links.md` describes the model and its limits.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Literal, Protocol

from link_emulator.mahimahi import OPPORTUNITY_BYTES
from link_emulator.profile import DirectionProfile, Profile
from link_emulator.timeline import Outages, Resets, Uniform, exponential, stream

# Three acknowledgements of later segments reveal a lost one, a round trip after it was sent (RFC 5681). With fewer
# later segments, a tail loss probe reveals it after two round trips and the longest delay of an acknowledgement (RFC
# 8985, section 7.2). If the retransmission is lost too, it waits for a timeout that doubles each time (RFC 6298). On
# Linux the first timeout is a round trip and 200 ms.
FAST_RETRANSMIT_SEGMENTS = 3
DELAYED_ACK_S = 0.2
MIN_TIMEOUT_S = 0.2
MAX_RETRANSMISSIONS = 8

PIECE_S = 0.001  # a piece is as long as the link carries in this time
MAX_PIECE_BYTES = 64 * 1024

MAX_MISSED_OPPORTUNITIES = 10_000  # in a row, because of outages

NORMAL_TAIL_DEVIATIONS = 3.0
PARETO_SHAPE = 3.0  # an assumption: the smallest whole number with a finite variance


class Direction:
    """One direction of the link: a queue, then a sender of limited rate, then the air.

    Delivery is in order within a flow, which is a connection. All flows share the rate, first come first served.
    """

    def __init__(self, profile: Profile, side: Literal["up", "down"], seed: int) -> None:
        self._profile = profile
        way = profile.up if side == "up" else profile.down
        if isinstance(way.trace, str):
            raise ValueError(f"{side}.trace: {way.trace!r} was not read; make the profile with load_profile")
        outages = Outages(profile.outages, seed)
        self._sender = _sender(way, outages)
        self._queue_bytes = way.queue_kbytes * 1000
        self._delay = _delays(way, stream(seed, side))
        self._loss = way.loss
        self._loss_draws = stream(seed, side, part=1)
        self._rtt_s = profile.rtt_ms / 1e3
        self._now_s = 0.0
        self._busy_until_s = 0.0
        self._frozen_until_s = 0.0
        self._queue: deque[tuple[float, int]] = deque()  # (when it is sent, bytes on the wire)
        self._last_arrival_s: dict[int, float] = {}
        self.payload_bytes = 0
        self.wire_bytes = 0
        self.piece_bytes = _piece_bytes(profile, way)

    def arrival(self, now_s: float, size_bytes: int, flow: int = 0) -> float:
        """Send a piece at `now_s`, and return the time at which all of it arrives.

        0 bytes are a bare control segment (SYN, FIN, ACK). A full queue takes the piece, too: see `room_at`. Raises
        ValueError if time runs backwards.
        """
        self._advance(now_s)
        segments = self._profile.segments(size_bytes)
        wire_bytes = self._profile.wire_bytes(size_bytes)
        ahead = len(self._queue)
        sent_s = self._sender(max(now_s, self._busy_until_s), wire_bytes)
        self._busy_until_s = sent_s
        self._queue.append((sent_s, wire_bytes))
        self.payload_bytes += size_bytes
        self.wire_bytes += wire_bytes
        arrival_s = sent_s + self._delay() + self._stall_s(segments, ahead)
        arrival_s = max(arrival_s, self._last_arrival_s.get(flow, 0.0))
        self._last_arrival_s[flow] = arrival_s
        return arrival_s

    def room_at(self, now_s: float, size_bytes: int) -> float:
        """Return the time at which the queue has room for a piece: now, or later if it is full.

        An empty queue has room for a piece of any size. The time is valid until the next piece is sent.
        """
        self._advance(now_s)
        excess = sum(size for _, size in self._queue) + self._profile.wire_bytes(size_bytes) - self._queue_bytes
        room_s = now_s
        for sent_s, size in self._queue:
            if excess <= 0:
                break
            excess -= size
            room_s = sent_s
        return room_s

    def freeze(self, now_s: float, until_s: float) -> float:
        """Carry nothing until `until_s`; pieces on their way wait, too.

        Returns the seconds that the caller adds to all arrival times it was given so far. A freeze that begins within
        another prolongs it.
        """
        self._advance(now_s)
        begin_s = max(now_s, self._frozen_until_s)
        shift_s = max(0.0, until_s - begin_s)
        if shift_s == 0.0:
            return 0.0
        self._frozen_until_s = until_s
        self._busy_until_s = max(begin_s, self._busy_until_s) + shift_s
        self._queue = deque((sent_s + shift_s, size) for sent_s, size in self._queue)
        self._last_arrival_s = {
            flow: arrival_s + shift_s if arrival_s > now_s else arrival_s
            for flow, arrival_s in self._last_arrival_s.items()
        }
        return shift_s

    def forget(self, flow: int) -> None:
        """Drop the state of a flow that has ended."""
        self._last_arrival_s.pop(flow, None)

    def _advance(self, now_s: float) -> None:
        if now_s < self._now_s:
            raise ValueError(f"now_s: {now_s} comes after {self._now_s}; hand pieces in as time passes")
        self._now_s = now_s
        while self._queue and self._queue[0][0] <= now_s:
            self._queue.popleft()

    def _stall_s(self, segments: int, ahead: int) -> float:
        """Return the time that the piece waits for the last of its lost segments."""
        if self._loss == 0.0:
            return 0.0
        stall_s = 0.0
        for index in range(segments):
            if self._loss_draws.random() < self._loss:
                in_bulk = segments - 1 - index + ahead >= FAST_RETRANSMIT_SEGMENTS
                stall_s = max(stall_s, self._recovery_s(in_bulk=in_bulk))
        return stall_s

    def _recovery_s(self, *, in_bulk: bool) -> float:
        recovery_s = self._rtt_s if in_bulk else 2 * self._rtt_s + DELAYED_ACK_S
        timeout_s = self._rtt_s + MIN_TIMEOUT_S
        for _ in range(MAX_RETRANSMISSIONS):
            if self._loss_draws.random() >= self._loss:
                break
            recovery_s += timeout_s
            timeout_s *= 2
        return recovery_s


class Link:
    """Both directions of a link and its resets, drawn from one seed. The directions share their outages."""

    def __init__(self, profile: Profile, seed: int = 0) -> None:
        self.profile = profile
        self.up = Direction(profile, "up", seed)
        self.down = Direction(profile, "down", seed)
        self.resets = Resets(profile.resets, seed)


class _Sender(Protocol):
    def __call__(self, start_s: float, wire_bytes: int) -> float:
        """Return the time at which the last byte has left, sending from `start_s` on. Calls have rising starts."""


def _sender(way: DirectionProfile, outages: Outages) -> _Sender:
    if isinstance(way.trace, tuple):
        return _TraceSender(way.trace, outages)
    return _RateSender(math.inf if way.rate_kbit_s is None else way.rate_kbit_s * 125, outages)


class _RateSender:
    """A sender of constant rate, which stops in outages."""

    def __init__(self, bytes_per_s: float, outages: Outages) -> None:
        self._bytes_per_s = bytes_per_s
        self._outages = outages

    def __call__(self, start_s: float, wire_bytes: int) -> float:
        needed_s = wire_bytes / self._bytes_per_s
        time_s = start_s
        while True:
            begin_s, end_s = self._outages.after(time_s)
            if time_s + needed_s < begin_s:
                return time_s + needed_s
            needed_s -= max(0.0, begin_s - time_s)
            time_s = end_s


class _TraceSender:
    """A sender with delivery opportunities. The rest of one serves the next piece only if that was waiting already."""

    def __init__(self, times_ms: Sequence[int], outages: Outages) -> None:
        self._times_ms = times_ms
        self._period_ms = times_ms[-1]
        self._outages = outages
        self._cycle = 0
        self._index = -1
        self._time_s = -1.0
        self._left_bytes = 0

    def __call__(self, start_s: float, wire_bytes: int) -> float:
        if self._time_s < start_s:
            self._seek(start_s)
        while wire_bytes > self._left_bytes:
            wire_bytes -= self._left_bytes
            self._step()
        self._left_bytes -= wire_bytes
        return self._time_s

    def _step(self) -> None:
        """Go to the next opportunity outside outages.

        If trace and outages are in step, there may be none. After many misses, the end of an outage counts as one.
        """
        for _ in range(MAX_MISSED_OPPORTUNITIES):
            self._index += 1
            if self._index == len(self._times_ms):
                self._cycle, self._index = self._cycle + 1, 0
            time_s = (self._cycle * self._period_ms + self._times_ms[self._index]) / 1e3
            up_s = self._outages.up_at(time_s)
            if up_s == time_s:
                break
            self._seek(up_s)
        self._time_s, self._left_bytes = up_s, OPPORTUNITY_BYTES

    def _seek(self, start_s: float) -> None:
        """Go to the place before the first opportunity at or after `start_s`."""
        start_ms = start_s * 1e3
        self._cycle = max(0, math.ceil(start_ms / self._period_ms) - 1)
        self._index = bisect_left(self._times_ms, start_ms - self._cycle * self._period_ms) - 1
        self._left_bytes = 0


def _delays(way: DirectionProfile, draws: Uniform) -> Callable[[], float]:
    """Return a source of delays, in seconds, with mean `delay_ms` and deviation `jitter_ms`, never below zero."""
    delay_s, jitter_s = way.delay_ms / 1e3, way.jitter_ms / 1e3
    if jitter_s == 0.0:
        return lambda: delay_s
    match way.jitter:
        case "normal":  # cut on both sides equally: the mean stays, and the deviation shrinks a little
            normal = NormalDist()
            reach = min(NORMAL_TAIL_DEVIATIONS, delay_s / jitter_s)
            low = normal.cdf(-reach)
            return lambda: delay_s + jitter_s * normal.inv_cdf(low + draws.random() * (1 - 2 * low))
        case "exponential":
            return lambda: delay_s - jitter_s + exponential(draws, jitter_s)
        case "pareto":  # the second kind (Lomax); shape and scale determine mean and deviation
            scale_s = jitter_s * (PARETO_SHAPE - 1) * math.sqrt((PARETO_SHAPE - 2) / PARETO_SHAPE)
            floor_s = delay_s - scale_s / (PARETO_SHAPE - 1)
            return lambda: floor_s + scale_s * ((1 - draws.random()) ** (-1 / PARETO_SHAPE) - 1)


def _piece_bytes(profile: Profile, way: DirectionProfile) -> int:
    """Return the payload of one piece: whole segments, and few enough to spread the rate evenly."""
    rate_kbit_s = way.mean_rate_kbit_s
    if rate_kbit_s is None:
        return MAX_PIECE_BYTES
    segments = int(rate_kbit_s * 125 * PIECE_S / profile.mtu_bytes)
    return max(1, min(segments, MAX_PIECE_BYTES // profile.segment_bytes)) * profile.segment_bytes

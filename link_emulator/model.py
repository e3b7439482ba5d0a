"""What a link does to the bytes handed to it: a function of profile, seed, and the calls so far.

No clock and no I/O: the proxy asks with the time of the machine, a simulator with its own. Times are seconds since
the link began. What is modelled, and what is not, stands in `docs/links.md`.
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

# A lost segment is noticed by three acknowledgements of later ones (RFC 5681), one round trip after it was sent; with
# fewer behind it by a tail loss probe, after two round trips and the longest that a receiver may put off its
# acknowledgement (RFC 8985, section 7.2). A retransmission that is lost too waits for a timeout, which doubles each
# time (RFC 6298); Linux starts at a round trip and 200 ms.
FAST_RETRANSMIT_BEHIND = 3
DELAYED_ACK_S = 0.2
MIN_TIMEOUT_S = 0.2
MAX_RETRANSMISSIONS = 8

PIECE_S = 0.001  # what the link carries in this time may as well be handed in at once
MAX_PIECE_BYTES = 64 * 1024

MAX_MISSED_OPPORTUNITIES = 10_000  # one after another, because of outages

NORMAL_TAIL_DEVIATIONS = 3.0
PARETO_SHAPE = 3.0  # assumed: the smallest whole one whose variance is finite


class Direction:
    """One way through the link: a queue, a sender of limited rate, and the air behind it.

    Delivery is in order within a flow (a connection); the rate is shared by all flows, first come first served.
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
        """When a piece handed in now comes out, whole; 0 bytes are a bare control segment (SYN, FIN, ACK).

        It is taken whether or not the queue has room: see `room_at`. Raises ValueError if time runs backwards.
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
        """When the queue has room for a piece: now, or later if it is full; an empty queue takes a piece of any size.

        The answer holds as long as nothing else is handed in meanwhile.
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
        """Carry nothing until then, not even what is on its way.

        Returns by how many seconds everything handed in so far arrives later than `arrival` has said; the caller adds
        them. A freeze that begins within another only prolongs it.
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
        """Free what is kept of a flow that has ended."""
        self._last_arrival_s.pop(flow, None)

    def _advance(self, now_s: float) -> None:
        if now_s < self._now_s:
            raise ValueError(f"now_s: {now_s} comes after {self._now_s}; hand pieces in as time passes")
        self._now_s = now_s
        while self._queue and self._queue[0][0] <= now_s:
            self._queue.popleft()

    def _stall_s(self, segments: int, ahead: int) -> float:
        """How long the piece waits for the last of its lost segments."""
        if self._loss == 0.0:
            return 0.0
        stall_s = 0.0
        for index in range(segments):
            if self._loss_draws.random() < self._loss:
                in_bulk = segments - 1 - index + ahead >= FAST_RETRANSMIT_BEHIND
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
    """Both directions of a link and its resets, drawn from one seed; the directions share their outages."""

    def __init__(self, profile: Profile, seed: int = 0) -> None:
        self.profile = profile
        self.up = Direction(profile, "up", seed)
        self.down = Direction(profile, "down", seed)
        self.resets = Resets(profile.resets, seed)


class _Sender(Protocol):
    def __call__(self, start_s: float, wire_bytes: int) -> float:
        """When the last byte has left, if nothing is sent before `start_s`; starts come in rising order."""


def _sender(way: DirectionProfile, outages: Outages) -> _Sender:
    if isinstance(way.trace, tuple):
        return _TraceSender(way.trace, outages)
    return _RateSender(math.inf if way.rate_kbit_s is None else way.rate_kbit_s * 125, outages)


class _RateSender:
    """A constant rate, except in outages."""

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
    """Delivery opportunities; what is left of one serves the next piece only if that was already waiting."""

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

        Trace and outages may be in step, so that there is none: after many misses the next end of an outage is one.
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
        """Stand before the first opportunity at or after `start_s`."""
        start_ms = start_s * 1e3
        self._cycle = max(0, math.ceil(start_ms / self._period_ms) - 1)
        self._index = bisect_left(self._times_ms, start_ms - self._cycle * self._period_ms) - 1
        self._left_bytes = 0


def _delays(way: DirectionProfile, draws: Uniform) -> Callable[[], float]:
    """A source of delays [s] with mean `delay_ms` and standard deviation `jitter_ms`, never below zero."""
    delay_s, jitter_s = way.delay_ms / 1e3, way.jitter_ms / 1e3
    if jitter_s == 0.0:
        return lambda: delay_s
    match way.jitter:
        case "normal":  # cut on both sides alike, so that the mean stays; the deviation shrinks a little
            normal = NormalDist()
            reach = min(NORMAL_TAIL_DEVIATIONS, delay_s / jitter_s)
            low = normal.cdf(-reach)
            return lambda: delay_s + jitter_s * normal.inv_cdf(low + draws.random() * (1 - 2 * low))
        case "exponential":
            return lambda: delay_s - jitter_s + exponential(draws, jitter_s)
        case "pareto":  # of the second kind (Lomax), whose mean and deviation follow from shape and scale
            scale_s = jitter_s * (PARETO_SHAPE - 1) * math.sqrt((PARETO_SHAPE - 2) / PARETO_SHAPE)
            floor_s = delay_s - scale_s / (PARETO_SHAPE - 1)
            return lambda: floor_s + scale_s * ((1 - draws.random()) ** (-1 / PARETO_SHAPE) - 1)


def _piece_bytes(profile: Profile, way: DirectionProfile) -> int:
    """The most payload worth handing in at once: whole segments, fine enough that the rate is felt evenly."""
    rate_kbit_s = way.mean_rate_kbit_s
    if rate_kbit_s is None:
        return MAX_PIECE_BYTES
    segments = int(rate_kbit_s * 125 * PIECE_S / profile.mtu_bytes)
    return max(1, min(segments, MAX_PIECE_BYTES // profile.segment_bytes)) * profile.segment_bytes

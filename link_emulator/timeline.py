"""Times that a seed draws: when the link is out, and when connections are reset. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from link_emulator.profile import OutageProfile, PeriodicOutages, RandomOutages, ResetProfile

NEVER = math.inf
Interval = tuple[float, float]

# One independent stream of draws for each purpose, so that turning one knob leaves the others' draws alone.
STREAMS = {name: number for number, name in enumerate(("outages", "resets", "up", "down"))}


class Uniform(Protocol):
    """Draws uniformly from [0, 1), as numpy.random.Generator and random.Random do."""

    def random(self) -> float: ...


def stream(seed: int, purpose: str, *, part: int = 0) -> Uniform:
    """The draws for one purpose; only uniform ones are taken, so that they stay the same across versions of NumPy."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, STREAMS[purpose], part])))


class Outages:
    """When the link is out. Times are asked for in rising order; what lies behind is forgotten."""

    def __init__(self, profile: OutageProfile, seed: int) -> None:
        sources = []
        if profile.periodic is not None:
            sources.append(_periodic(profile.periodic, stream(seed, "outages")))
        if profile.random is not None:
            sources.append(_random(profile.random, stream(seed, "outages", part=1)))
        self._intervals = _united(heapq.merge(*sources))
        self._next: Interval = next(self._intervals, (NEVER, NEVER))

    def after(self, time_s: float) -> Interval:
        """The outage that goes on at `time_s`, or else the next one, as (begin, end); infinite if there is none."""
        while self._next[1] <= time_s:
            self._next = next(self._intervals, (NEVER, NEVER))
        return self._next

    def up_at(self, time_s: float) -> float:
        """`time_s`, or the end of the outage that goes on then."""
        begin, end = self.after(time_s)
        return end if begin <= time_s else time_s


class Resets:
    """When all connections are reset. Times are asked for in rising order."""

    def __init__(self, profile: ResetProfile, seed: int) -> None:
        self._times = heapq.merge(_poisson(profile.mean_interval_s, stream(seed, "resets")), profile.at_s)
        self._next = next(self._times, NEVER)

    def next_after(self, time_s: float) -> float:
        """The first reset later than `time_s`; infinite if there is none."""
        while self._next <= time_s:
            self._next = next(self._times, NEVER)
        return self._next


def exponential(draws: Uniform, mean: float) -> float:
    """An exponentially distributed number."""
    return -mean * math.log1p(-draws.random())


def _periodic(profile: PeriodicOutages, draws: Uniform) -> Iterator[Interval]:
    first = draws.random() * profile.every_s
    number = 0
    while True:
        begin = first + number * profile.every_s
        yield begin, begin + profile.lasts_s
        number += 1


def _random(profile: RandomOutages, draws: Uniform) -> Iterator[Interval]:
    end = 0.0
    while True:
        begin = end + exponential(draws, profile.mean_interval_s)
        end = begin + exponential(draws, profile.mean_lasts_s)
        yield begin, end


def _poisson(mean_interval_s: float | None, draws: Uniform) -> Iterator[float]:
    time = 0.0
    while mean_interval_s is not None:
        time += exponential(draws, mean_interval_s)
        yield time


def _united(intervals: Iterator[Interval]) -> Iterator[Interval]:
    """Intervals in order of their begin, those that overlap or touch made one."""
    current: Interval | None = None
    for begin, end in intervals:
        if current is None:
            current = begin, end
        elif begin <= current[1]:
            current = current[0], max(current[1], end)
        else:
            yield current
            current = begin, end
    if current is not None:
        yield current

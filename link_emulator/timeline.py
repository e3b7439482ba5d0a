"""The times of outages and resets, drawn from a seed. This module is pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from link_emulator.profile import OutageProfile, PeriodicOutages, RandomOutages, ResetProfile

NEVER = math.inf
Interval = tuple[float, float]

# Each purpose has an independent stream of draws. A change of one knob then leaves the draws of the others unchanged.
STREAMS = {name: number for number, name in enumerate(("outages", "resets", "up", "down"))}


class Uniform(Protocol):
    """A source of uniform draws from [0, 1), such as numpy.random.Generator and random.Random."""

    def random(self) -> float: ...


def stream(seed: int, purpose: str, *, part: int = 0) -> Uniform:
    """Return the draws for one purpose. They are uniform, because NumPy keeps only those stable across versions."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, STREAMS[purpose], part])))


class Outages:
    """The outages of a link. Ask for rising times, because past outages are dropped."""

    def __init__(self, profile: OutageProfile, seed: int) -> None:
        sources = []
        if profile.periodic is not None:
            sources.append(_periodic(profile.periodic, stream(seed, "outages")))
        if profile.random is not None:
            sources.append(_random(profile.random, stream(seed, "outages", part=1)))
        self._intervals = _united(heapq.merge(*sources))
        self._next: Interval = next(self._intervals, (NEVER, NEVER))

    def after(self, time_s: float) -> Interval:
        """Return the outage at `time_s`, or else the next one, as (begin, end); infinite if there is none."""
        while self._next[1] <= time_s:
            self._next = next(self._intervals, (NEVER, NEVER))
        return self._next

    def up_at(self, time_s: float) -> float:
        """Return `time_s`, or the end of an outage at that time."""
        begin, end = self.after(time_s)
        return end if begin <= time_s else time_s


class Resets:
    """The resets of all connections. Ask for rising times."""

    def __init__(self, profile: ResetProfile, seed: int) -> None:
        self._times = heapq.merge(_poisson(profile.mean_interval_s, stream(seed, "resets")), profile.at_s)
        self._next = next(self._times, NEVER)

    def next_after(self, time_s: float) -> float:
        """Return the first reset after `time_s`; infinite if there is none."""
        while self._next <= time_s:
            self._next = next(self._times, NEVER)
        return self._next


def exponential(draws: Uniform, mean: float) -> float:
    """Return an exponentially distributed number."""
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
    """Merge intervals that overlap or touch; they are sorted by their begin."""
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

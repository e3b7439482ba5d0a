"""The discrete-event simulation (simpy) of `python -m benchmarks fleet`.

A generation is a chain of device work, uplink, forwards of the cloud and downlink. A replica runs one forward at a time
over its queue: first come, first served. A request that needs further forwards queues again after each.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import simpy

from benchmarks.fleet.model import Demand, Fleet, Segment, StepTime

Steps = Generator[simpy.Event, Any, None]


class Gauge:
    """The time integral of a level, over a window in ms."""

    def __init__(self, env: simpy.Environment, begins: float, ends: float) -> None:
        self._env, self._begins, self._ends = env, begins, ends
        self._since = 0.0
        self.level = 0
        self.area = 0.0

    def add(self, change: int) -> None:
        """Change the level now."""
        self._settle()
        self.level += change

    def mean(self) -> float:
        """Return the mean over the window; call it when the simulation is past the window."""
        self._settle()
        return self.area / (self._ends - self._begins)

    def _settle(self) -> None:
        now = self._env.now
        self.area += self.level * max(0.0, min(now, self._ends) - max(self._since, self._begins))
        self._since = now


@dataclass(slots=True)
class Job:
    """A request at a replica: tokens of each forward that it still needs, the last one first."""

    forwards: list[int]
    left_at_first: int  # forwards left after the first one that answers (not the prompt's)
    done: simpy.Event  # its value is the time of the first answer
    queued_at: float
    answered_at: float = 0.0


class Replica:
    """One copy of the large model."""

    def __init__(self, env: simpy.Environment, step: StepTime, max_batch: int, begins: float, ends: float) -> None:
        self._env, self._step, self._max_batch = env, step, max_batch
        self._window = begins, ends
        self._queue: deque[Job] = deque()
        self._wake = env.event()
        self.waiting = Gauge(env, begins, ends)
        self.busy = Gauge(env, begins, ends)
        self.waits_ms: list[float] = []  # waiting times of forwards that began in the window
        self.steps = 0
        env.process(self._serve())

    def submit(self, forwards: Sequence[int], prompt_forwards: int = 0) -> simpy.Event:
        """Queue a request; the event triggers at the end of its last forward, with the time of its first answer."""
        left_at_first = len(forwards) - prompt_forwards - 1
        job = Job([*reversed(forwards)], left_at_first, self._env.event(), self._env.now)
        self._put(job)
        if not self._wake.triggered:
            self._wake.succeed()
        return job.done

    def _put(self, job: Job) -> None:
        job.queued_at = self._env.now
        self._queue.append(job)
        self.waiting.add(1)

    def _serve(self) -> Steps:
        env, (begins, ends) = self._env, self._window
        while True:
            if not self._queue:
                self._wake = env.event()
                yield self._wake
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._max_batch))]
            self.waiting.add(-len(batch))
            if begins <= env.now < ends:
                self.steps += 1
                self.waits_ms.extend(env.now - job.queued_at for job in batch)
            self.busy.add(1)
            yield env.timeout(self._step(len(batch), sum(job.forwards.pop() for job in batch)))
            self.busy.add(-1)
            for job in batch:
                if len(job.forwards) == job.left_at_first:
                    job.answered_at = env.now
                if job.forwards:
                    self._put(job)
                else:
                    job.done.succeed(job.answered_at)


@dataclass(slots=True)
class Outcome:
    """The observations of a simulation; times in ms, lists of the generations that began in the window."""

    began: int = 0
    ended: int = 0
    measured: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    per_token_ms: list[float] = field(default_factory=list)
    tokens_in_window: float = 0.0  # tokens of generations that ended in the window
    device_ms: float = 0.0  # this one and the next three: sums over measured generations
    radio_ms: float = 0.0
    requests: int = 0
    tokens: float = 0.0
    in_flight: float = 0.0  # mean number of generations under way
    utilisation: float = 0.0
    waiting: float = 0.0  # mean number of requests that wait for a forward, a replica
    waits_ms: list[float] = field(default_factory=list)
    steps: int = 0


class Simulation:
    """One fleet under one strategy; a seed gives one outcome."""

    def __init__(self, fleet: Fleet, demand: Demand, step: StepTime, seed: int) -> None:
        arrivals, devices, work = np.random.SeedSequence(seed).spawn(3)
        self._fleet, self._demand = fleet, demand
        self._arrivals, self._work = np.random.default_rng(arrivals), np.random.default_rng(work)
        traits = np.random.default_rng(devices)
        self._rtts_ms = traits.choice(np.array(fleet.rtts_ms), fleet.devices)
        self._speeds = fleet.draw_speeds(fleet.devices, traits)
        self._env = simpy.Environment()
        self._begins, self._ends = fleet.warmup_s * 1e3, (fleet.warmup_s + fleet.window_s) * 1e3
        self._replicas = [
            Replica(self._env, step, fleet.max_batch, self._begins, self._ends) for _ in range(fleet.replicas)
        ]
        self._under_way = Gauge(self._env, self._begins, self._ends)
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Run from an empty cloud until every generation that began in the window has ended."""
        env, outcome = self._env, self.outcome
        if self._fleet.closed:
            begins_ms = self._fleet.draw_rest_of_thinking(self._fleet.devices, self._arrivals) * 1e3
            for device in np.flatnonzero(begins_ms < self._ends):
                env.process(self._live(int(device), float(begins_ms[device])))
        else:
            env.process(self._arrive())
        env.run()
        gauges = [replica.busy.mean() for replica in self._replicas]
        outcome.utilisation = float(np.mean(gauges))
        outcome.waiting = float(np.mean([replica.waiting.mean() for replica in self._replicas]))
        outcome.waits_ms = [wait for replica in self._replicas for wait in replica.waits_ms]
        outcome.steps = sum(replica.steps for replica in self._replicas)
        outcome.in_flight = self._under_way.mean()
        return outcome

    def _live(self, device: int, begins_ms: float) -> Steps:
        """Run a device of a closed loop: ask, read the answer, think."""
        yield self._env.timeout(begins_ms)
        while self._env.now < self._ends:
            yield from self._generate(device)
            yield self._env.timeout(self._fleet.draw_thinking(self._arrivals) * 1e3)

    def _arrive(self) -> Steps:
        """Run the Poisson process of an open loop; each request belongs to a random device."""
        gap_ms = self._fleet.think_s / self._fleet.devices * 1e3
        while True:
            yield self._env.timeout(float(self._arrivals.exponential(gap_ms)))
            if self._env.now >= self._ends:
                return
            self._env.process(self._generate(int(self._arrivals.integers(self._fleet.devices))))

    def _generate(self, device: int) -> Steps:
        env, demand = self._env, self._demand
        began, first, hidden = env.now, None, None
        length = demand.draw_length(self._work)
        tokens = max(1.0, demand.completion_tokens * length)
        speed, rtt_ms = self._speeds[device], float(self._rtts_ms[device])
        replica = self._replicas[device % len(self._replicas)]
        self.outcome.began += 1
        self._under_way.add(1)
        device_ms, requests = 0.0, 0
        for segment in demand.segments(length, self._work):
            device_ms += segment.device_ms / speed
            yield env.timeout(segment.device_ms / speed)
            if hidden is not None:
                answered = yield hidden
                first = answered if first is None else first
                hidden = None
            if not segment.forwards:
                first = began + device_ms / tokens
                continue
            requests += 1
            if segment.hidden:
                hidden = env.process(self._ask(replica, rtt_ms, segment))
            else:
                answered = yield from self._ask(replica, rtt_ms, segment)
                first = answered if first is None else first
        if hidden is not None:
            answered = yield hidden
            first = answered if first is None else first
        self._under_way.add(-1)
        assert first is not None, "a generation has a segment"
        self._record(began, first, tokens, device_ms, requests, rtt_ms)

    def _ask(self, replica: Replica, rtt_ms: float, segment: Segment) -> Generator[simpy.Event, Any, float]:
        """Make a round trip; return the time at which its first token was at the device."""
        yield self._env.timeout(rtt_ms / 2)
        answered_at: float = yield replica.submit(segment.forwards, segment.prompt_forwards)
        yield self._env.timeout(rtt_ms / 2)
        return answered_at + rtt_ms / 2

    def _record(
        self, began: float, first: float, tokens: float, device_ms: float, requests: int, rtt_ms: float
    ) -> None:
        outcome, now = self.outcome, self._env.now
        outcome.ended += 1
        if self._begins <= now < self._ends:
            outcome.tokens_in_window += tokens
        if not self._begins <= began < self._ends:
            return
        outcome.measured += 1
        outcome.ttft_ms.append(first - began)
        outcome.total_ms.append(now - began)
        outcome.per_token_ms.append((now - began) / tokens)
        outcome.device_ms += device_ms
        outcome.radio_ms += requests * rtt_ms
        outcome.requests += requests
        outcome.tokens += tokens


def part_of(fleet: Fleet, demand: Demand, step: StepTime, max_work: float) -> Fleet:
    """Return as much of a fleet as `max_work` allows, in approximate events of the simulation.

    Devices stick to a replica, so whole replicas with their share of the devices stand for the rest. If one is still
    too much, the window shrinks.
    """
    cycle_s = fleet.think_s
    if fleet.closed:
        cycle_s += demand.unloaded_ms(float(np.mean(fleet.rtts_ms)), step) / 1e3
    work = 4 + demand.requests * (3 + demand.forwards_per_request / 4)
    offered = fleet.devices / cycle_s * (fleet.warmup_s + fleet.window_s) * work
    if offered <= max_work:
        return fleet
    replicas = max(1, math.floor(fleet.replicas * max_work / offered))
    devices = max(1, round(fleet.devices * replicas / fleet.replicas))
    left = min(1.0, max_work / (offered * devices / fleet.devices))
    return replace(
        fleet,
        devices=devices,
        replicas=replicas,
        warmup_s=fleet.warmup_s * left,
        window_s=fleet.window_s * left,
    )

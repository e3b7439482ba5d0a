"""The discrete-event simulation (simpy) of one replica and its devices.

A generation is a chain of device work, uplink, forwards of the cloud and downlink. Devices stay with their replica, so
replicas are independent of each other, and are simulated one after the other.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from benchmarks.fleet.conversation import Conversation, Latencies
from benchmarks.fleet.model import Demand, Fleet, StepTime
from benchmarks.fleet.population import Population
from benchmarks.fleet.replica import Gauge, Load, Replica, Window

Steps = Generator[simpy.Event, Any, None]


@dataclass(slots=True)
class Outcome:
    """The observations of a replica; times in ms, lists of the generations that began in the window."""

    devices: int
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
    most_in_flight: int = 0
    utilisation: float = 0.0
    waiting: float = 0.0  # mean number of requests that wait for a forward
    evictions: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    load: Load = field(default_factory=Load)


class Simulation:
    """One replica and some of the fleet's devices, under one strategy."""

    def __init__(
        self,
        fleet: Fleet,
        demand: Demand,
        step: StepTime,
        population: Population,
        devices: NDArray[np.int64],
        seed: np.random.SeedSequence,
    ) -> None:
        arrivals, work = seed.spawn(2)
        self._fleet, self._demand, self._population, self._devices = fleet, demand, population, devices
        self._arrivals, self._work = np.random.default_rng(arrivals), np.random.default_rng(work)
        self._env = simpy.Environment()
        self._window = Window(fleet.warmup_s * 1e3, (fleet.warmup_s + fleet.window_s) * 1e3)
        self._replica = Replica(self._env, step, fleet, self._window)
        self._under_way = Gauge(self._env, self._window)
        self._keys = count()
        self.outcome = Outcome(len(devices))

    def run(self) -> Outcome:
        """Run from an empty cloud until every generation that began in the window has ended."""
        env, outcome, replica = self._env, self.outcome, self._replica
        if self._fleet.closed:
            begins_ms = self._fleet.draw_rest_of_thinking(len(self._devices), self._arrivals) * 1e3
            for index in np.flatnonzero(begins_ms < self._window.ends):
                env.process(self._live(int(self._devices[index]), float(begins_ms[index])))
        elif len(self._devices):
            env.process(self._arrive())
        env.run()
        outcome.utilisation = replica.busy.mean()
        outcome.waiting = replica.waiting.mean()
        outcome.load = replica.load
        outcome.evictions = replica.caches.evictions
        outcome.in_flight = self._under_way.mean()
        outcome.most_in_flight = self._under_way.peak
        return outcome

    def _live(self, device: int, begins_ms: float) -> Steps:
        """Run a device of a closed loop: ask, read the answer, think."""
        yield self._env.timeout(begins_ms)
        while self._env.now < self._window.ends:
            yield from self._generate(device)
            yield self._env.timeout(self._fleet.draw_thinking(self._arrivals) * 1e3)

    def _arrive(self) -> Steps:
        """Run the Poisson process of an open loop; each request belongs to a random device."""
        gap_ms = self._fleet.think_s / len(self._devices) * 1e3
        while True:
            yield self._env.timeout(float(self._arrivals.exponential(gap_ms)))
            if self._env.now >= self._window.ends:
                return
            device = self._devices[int(self._arrivals.integers(len(self._devices)))]
            self._env.process(self._generate(int(device)))

    def _generate(self, device: int) -> Steps:
        env, demand = self._env, self._demand
        began, first, hidden = env.now, None, None
        length = demand.draw_length(self._work)
        tokens = max(1.0, demand.completion_tokens * length)
        speed, rtt_ms = float(self._population.speeds[device]), float(self._population.rtts_ms[device])
        conversation = self._converse(device, rtt_ms)
        self.outcome.began += 1
        self._under_way.set(self._under_way.level + 1)
        if demand.requests:
            conversation.open(round(demand.prompt_tokens))
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
                hidden = conversation.ask(segment.forwards)
            else:
                answered = yield conversation.ask(segment.forwards)
                first = answered if first is None else first
        if hidden is not None:
            answered = yield hidden
            first = answered if first is None else first
        conversation.close()
        self._under_way.set(self._under_way.level - 1)
        assert first is not None, "a generation has a segment"
        self._record(began, first, tokens, device_ms, requests, rtt_ms)

    def _converse(self, device: int, rtt_ms: float) -> Conversation:
        tenant = f"tenant {device % self._fleet.tenants}"
        return Conversation(
            self._replica, self._env, self._window, self.outcome.latencies, next(self._keys), tenant, rtt_ms,
            self._fleet.kv_tokens,
        )  # fmt: skip

    def _record(
        self, began: float, first: float, tokens: float, device_ms: float, requests: int, rtt_ms: float
    ) -> None:
        outcome, now = self.outcome, self._env.now
        outcome.ended += 1
        if self._window.holds(now):
            outcome.tokens_in_window += tokens
        if not self._window.holds(began):
            return
        outcome.measured += 1
        outcome.ttft_ms.append(first - began)
        outcome.total_ms.append(now - began)
        outcome.per_token_ms.append((now - began) / tokens)
        outcome.device_ms += device_ms
        outcome.radio_ms += requests * rtt_ms
        outcome.requests += requests
        outcome.tokens += tokens


def outcomes(fleet: Fleet, demand: Demand, step: StepTime, seed: int) -> Iterator[Outcome]:
    """Simulate one replica of the fleet after the other. A replica's outcome depends on no other replica."""
    population = Population.draw(fleet, seed)
    for number, devices in enumerate(population.by_replica(fleet.replicas)):
        yield Simulation(fleet, demand, step, population, devices, np.random.SeedSequence((seed, number))).run()

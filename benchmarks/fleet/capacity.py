"""The replicas that a number of devices needs, so that 95% of answers and prompts come within their targets.

The search simulates a sample of the replicas. The number that it finds is then simulated whole, and raised until the
whole keeps the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.fleet.model import Demand, Fleet, StepTime
from benchmarks.fleet.simulation import outcomes
from benchmarks.fleet.totals import Target, Totals

LATE_SHARE = 0.05
RESOLUTION = 0.01  # of the number of replicas
_HOPELESS = 4 * LATE_SHARE  # of two replicas or more; the rest need not be simulated
_LEAST_REPLICAS = 3
_STRIDE = 1.4  # from one trial to the next, until one keeps the target and one does not


@dataclass(frozen=True, slots=True)
class Trial:
    """One number of replicas, and the share of late answers with it."""

    replicas: int
    simulated: int
    late_share: float
    late_share_error: float | None  # standard error; 0 if every replica was simulated
    late_prompt_share: float

    @property
    def kept(self) -> bool:
        """The target holds."""
        return max(self.late_share, self.late_prompt_share) <= LATE_SHARE


@dataclass(frozen=True, slots=True)
class Need:
    """The outcome of a search: the whole fleet with the replicas that it needs."""

    fleet: Fleet
    totals: Totals
    trials: tuple[Trial, ...]
    enough: bool  # False: even a replica for each device is too slow


class Search:
    """One demand on one kind of replica."""

    def __init__(self, demand: Demand, step: StepTime, seed: int, target: Target, sample_answers: int) -> None:
        """Keep `target`; a sample has at least `sample_answers`."""
        self._demand, self._step, self._seed = demand, step, seed
        self._target, self._sample_answers = target, sample_answers
        self._trials: list[Trial] = []

    def need(self, fleet: Fleet, guess: int | None = None) -> Need:
        """Return how many replicas the fleet's devices need. `guess` is where the search begins."""
        self._trials = []
        most = fleet.devices
        if not self._demand.requests:  # devices that are alone need no cloud
            return Need(replace(fleet, replicas=1), self.simulate(fleet, 1), (), True)
        replicas = min(most, guess or math.ceil(1.5 * self.least(fleet)))
        low, high = 0, most  # too few, and enough as far as known
        if self._kept(fleet, replicas):
            high = replicas
            while high > 1 and self._kept(fleet, less := min(high - 1, math.floor(high / _STRIDE))):
                high = less
            low = max((trial.replicas for trial in self._trials if not trial.kept), default=0)
        else:
            low = replicas
            while low < most and not self._kept(fleet, more := min(most, math.ceil(low * _STRIDE))):
                low = more
            high = min(most, math.ceil(low * _STRIDE))
        while high - low > max(1, RESOLUTION * high):
            middle = (low + high) // 2
            if self._kept(fleet, middle):
                high = middle
            else:
                low = middle
        while True:
            totals = self.simulate(fleet, high)
            trial = self._note(high, totals)
            if trial.kept or high == most:
                return Need(replace(fleet, replicas=high), totals, tuple(self._trials), trial.kept)
            high = min(most, high + max(1, math.ceil(RESOLUTION * high)))

    def least(self, fleet: Fleet) -> float:
        """Return the replicas that the work takes if every forward is full."""
        demand = self._demand
        cycle_s = fleet.think_s
        if fleet.closed:
            cycle_s += demand.unloaded_ms(float(np.mean(fleet.rtts_ms)), self._step) / 1e3
        span = round(demand.tokens_per_forward)
        batch = max(1, fleet.step_tokens // span)
        forward_ms = self._step(batch, batch * span) / batch
        token_ms = self._step(math.ceil(fleet.step_tokens / fleet.prefill_chunk_tokens), fleet.step_tokens)
        busy_ms = demand.requests * demand.forwards_per_request * forward_ms
        busy_ms += demand.prompt_tokens * token_ms / fleet.step_tokens
        return max(1.0, fleet.devices / cycle_s * busy_ms / 1e3)

    def simulate(
        self, fleet: Fleet, replicas: int, sample_answers: float = math.inf, hopeless: float = math.inf
    ) -> Totals:
        """Simulate replica after replica, until they have given that many answers, or a `hopeless` share is late.

        Hashing makes replicas alike, so the first ones are a random sample.
        """
        totals = Totals(self._target)
        for outcome in outcomes(replace(fleet, replicas=replicas), self._demand, self._step, self._seed):
            totals.add(outcome)
            if totals.replicas >= _LEAST_REPLICAS and len(totals.answers) >= sample_answers:
                break
            if totals.replicas > 1 and totals.late_share > hopeless:
                break
        return totals

    def _kept(self, fleet: Fleet, replicas: int) -> bool:
        return self._note(replicas, self.simulate(fleet, replicas, self._sample_answers, _HOPELESS)).kept

    def _note(self, replicas: int, totals: Totals) -> Trial:
        error = totals.answers.error(replicas)
        trial = Trial(
            replicas,
            totals.replicas,
            round(totals.answers.late_share, 5),
            None if error is None else round(error, 5),
            round(totals.prompts.late_share, 5),
        )
        self._trials.append(trial)
        return trial


def needs(search: Search, fleet: Fleet, sizes: Sequence[int]) -> list[Need]:
    """Return the need of each number of devices; each search begins at the devices a replica of the last one."""
    found: list[Need] = []
    for devices in sizes:
        guess = math.ceil(devices * found[-1].fleet.replicas / found[-1].fleet.devices) if found else None
        found.append(search.need(replace(fleet, devices=devices, replicas=1), guess))
    return found


def part_of(fleet: Fleet, demand: Demand, step: StepTime, max_work: float) -> tuple[Fleet, float]:
    """Return a fleet and the answers of a sample of it, such that both stay within `max_work`, in approximate forwards.

    Infinitely many answers stand for all replicas. If a single replica is too much, the window shrinks.
    """
    cycle_s = fleet.think_s
    if fleet.closed:
        cycle_s += demand.unloaded_ms(float(np.mean(fleet.rtts_ms)), step) / 1e3
    work = 1 + demand.requests * demand.forwards_per_request
    offered = fleet.devices / cycle_s * (fleet.warmup_s + fleet.window_s) * work
    if offered <= max_work:
        return fleet, math.inf
    left = min(1.0, max_work / (offered / fleet.replicas))
    part = replace(fleet, warmup_s=fleet.warmup_s * left, window_s=fleet.window_s * left)
    return part, max_work

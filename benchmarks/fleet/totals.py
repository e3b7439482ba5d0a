"""The observations of several replicas together, in memory that does not grow with the devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.fleet.simulation import Outcome
from benchmarks.fleet.spread import Spread
from chaperone_common.errors import ConfigError

_SUMS = (
    "devices",
    "began",
    "ended",
    "measured",
    "tokens_in_window",
    "device_ms",
    "radio_ms",
    "requests",
    "tokens",
    "in_flight",
    "utilisation",
    "waiting",
    "evictions",
)


@dataclass(frozen=True, slots=True)
class Target:
    """Times in ms within which 95% of the answers come, and 95% of the prompts are read."""

    answer_ms: float = 1500.0
    prompt_ms: float = 5000.0

    def __post_init__(self) -> None:
        if not (self.answer_ms > 0 and self.prompt_ms > 0):
            raise ConfigError(f"target: {self.answer_ms:g} and {self.prompt_ms:g} ms; give more than 0")


class Punctuality:
    """Counts of times, and of those that are later than a target, by replica."""

    def __init__(self) -> None:
        self._counts: list[tuple[int, int]] = []  # by replica: those that are late, and all

    def add(self, times_ms: Sequence[float], target_ms: float) -> None:
        """Count the times of a replica."""
        self._counts.append((sum(time > target_ms for time in times_ms), len(times_ms)))

    def __len__(self) -> int:
        """Return the number of times."""
        return sum(count for _, count in self._counts)

    @property
    def late_share(self) -> float:
        """The share that is late; 0 if there are none."""
        return sum(late for late, _ in self._counts) / max(1, len(self))

    def error(self, all_replicas: int) -> float | None:
        """Return the standard error of the late share, if the replicas are a sample; None for a single one.

        It is that of a ratio over clusters without replacement, and 0 if every replica was simulated.
        """
        count = len(self._counts)
        if count == all_replicas:
            return 0.0
        if count < 2:
            return None
        share = self.late_share
        squares = sum((late - share * times) ** 2 for late, times in self._counts)
        variance = count / (count - 1) * squares * (1 - count / all_replicas)
        return math.sqrt(variance) / max(1, len(self))


@dataclass(slots=True)
class Totals:
    """Sums over replicas; times in ms. An answer is a verdict, or a token that the cloud wrote on its own."""

    target: Target
    replicas: int = 0
    devices: int = 0
    began: int = 0
    ended: int = 0
    measured: int = 0
    tokens_in_window: float = 0.0
    device_ms: float = 0.0
    radio_ms: float = 0.0
    requests: int = 0
    tokens: float = 0.0
    in_flight: float = 0.0
    utilisation: float = 0.0
    waiting: float = 0.0
    evictions: int = 0
    most_in_flight: int = 0  # at one replica
    steps: int = 0
    chunks: int = 0
    fed_tokens: int = 0
    refused: int = 0
    ttft_ms: Spread = field(default_factory=Spread)
    total_ms: Spread = field(default_factory=Spread)
    per_token_ms: Spread = field(default_factory=Spread)
    verification_ms: Spread = field(default_factory=Spread)
    writing_ms: Spread = field(default_factory=Spread)
    prompt_ms: Spread = field(default_factory=Spread)
    waits_ms: Spread = field(default_factory=Spread)
    answers: Punctuality = field(default_factory=Punctuality)
    prompts: Punctuality = field(default_factory=Punctuality)

    def add(self, outcome: Outcome) -> None:
        """Count a replica."""
        self.replicas += 1
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(outcome, name))
        self.most_in_flight = max(self.most_in_flight, outcome.most_in_flight)
        load, latencies = outcome.load, outcome.latencies
        self.steps += load.steps
        self.chunks += load.chunks
        self.fed_tokens += load.fed_tokens
        self.refused += latencies.refused
        self.ttft_ms.add(outcome.ttft_ms)
        self.total_ms.add(outcome.total_ms)
        self.per_token_ms.add(outcome.per_token_ms)
        self.verification_ms.add(latencies.verification_ms)
        self.writing_ms.add(latencies.writing_ms)
        self.prompt_ms.add(latencies.prompt_ms)
        self.waits_ms.add(load.waits_ms)
        self.answers.add([*latencies.verification_ms, *latencies.writing_ms], self.target.answer_ms)
        self.prompts.add(latencies.prompt_ms, self.target.prompt_ms)

    @property
    def late_share(self) -> float:
        """The larger of the shares of late answers and late prompts."""
        return max(self.answers.late_share, self.prompts.late_share)

"""What is learned from samples: a quantile, a chance, a line, and how overrides come in clusters."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

_WINDOW = 9  # recent samples that a quantile is taken of
_FORGETTING = 0.96  # weight of a reading against the one after it
_SLOPE_PRIOR = 1 / 32  # of a reading's base time, for each further token: between a CPU's 1/20 and a GPU's almost 0
_BEHIND = 16  # tokens behind an override that are looked at


class Recent:
    """A quantile of the latest samples, or a prior while there is none."""

    def __init__(self, prior: float, *, window: int = _WINDOW, quantile: float = 0.5) -> None:
        self._samples: deque[float] = deque(maxlen=window)
        self._quantile = quantile
        self._value = prior

    def add(self, sample: float) -> None:
        """Take a sample in."""
        self._samples.append(sample)
        self._value = float(np.quantile(self._samples, self._quantile, method="lower"))

    @property
    def value(self) -> float:
        """The quantile."""
        return self._value

    @property
    def known(self) -> bool:
        """Whether there is any sample."""
        return bool(self._samples)


@dataclass(slots=True)
class Share:
    """A chance, learned from trials; the prior counts as so many of them, and old trials fade."""

    prior: float
    weight: float
    memory: float = 200.0  # trials that count
    _hits: float = 0.0
    _trials: float = 0.0

    def add(self, hit: float, trials: float = 1.0) -> None:
        """Take trials in; more than can be remembered count as so many."""
        hit, trials = hit * min(1.0, self.memory / max(trials, 1.0)), min(trials, self.memory)
        self.fade(trials)
        self._hits += hit
        self._trials += trials

    def fade(self, trials: float = 1.0) -> None:
        """Let so many trials pass that tell nothing."""
        kept = 1 - min(trials, self.memory) / self.memory
        self._hits *= kept
        self._trials *= kept

    @property
    def value(self) -> float:
        """The posterior mean."""
        return (self.prior * self.weight + self._hits) / (self.weight + self._trials)


@dataclass(slots=True)
class ReadingTime:
    """Least squares of a reading's time on its tokens, with fading memory.

    While all spans were of one length, nothing is known of the slope: a weak prior holds it to a share of the base.
    """

    base_ms: float
    token_ms: float
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # of 1, k, k*k, y, k*y

    @property
    def known(self) -> bool:
        """Whether there is any sample."""
        return self._sums[0] > 0

    def add(self, tokens: int, elapsed_ms: float) -> None:
        """Take in one reading."""
        row = (1.0, tokens, tokens * tokens, elapsed_ms, tokens * elapsed_ms)
        self._sums = [_FORGETTING * old + new for old, new in zip(self._sums, row, strict=True)]
        self._fit()

    def _fit(self) -> None:
        """Minimise sum (y - base - k token)^2 + (token - prior * base)^2 * spread."""
        ones, k, kk, y, ky = self._sums
        spread = 16.0
        a11, a12, a22 = ones + spread * _SLOPE_PRIOR**2, k - spread * _SLOPE_PRIOR, kk + spread
        determinant = a11 * a22 - a12 * a12
        base = (a22 * y - a12 * ky) / determinant
        token = (a11 * ky - a12 * y) / determinant
        if token < 0 or base <= 0:  # noise: all of it is base, or all of it slope
            base, token = (y / ones, 0.0) if token < 0 else (0.0, ky / kk)
        self.base_ms, self.token_ms = base, token


class OverrideClusters:
    """The chance that the device is overridden again, by the distance from the last override."""

    def __init__(self) -> None:
        self._shares = [Share(prior=0.15, weight=6.0, memory=60.0) for _ in range(_BEHIND)]

    def settled(self, distance: int, *, overridden: bool) -> None:
        """A token of the device's, or one in its place, became final so many tokens behind an override."""
        if distance <= _BEHIND:
            self._shares[distance - 1].add(overridden)

    def unknown(self, distance: int) -> None:
        """The cloud wrote a token there unasked; what was known of the device fades, so that it gets another chance."""
        if distance <= _BEHIND:
            self._shares[distance - 1].fade()

    def chances(self) -> Iterator[float]:
        """By distance, from 1 on."""
        return (share.value for share in self._shares)

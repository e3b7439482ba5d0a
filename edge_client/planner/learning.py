"""Estimates from samples: a quantile, a chance and a line."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

_WINDOW = 9  # samples of a quantile
_FORGETTING = 0.96  # weight of a sample relative to the next one
# Time of each further token, as a share of the base time: between 1/20 on a CPU and almost 0 on a GPU.
_SLOPE_PRIOR = 1 / 32


class Recent:
    """A quantile of the latest samples, or a prior before the first one."""

    def __init__(self, prior: float, *, window: int = _WINDOW, quantile: float = 0.5) -> None:
        self._samples: deque[float] = deque(maxlen=window)
        self._quantile = quantile
        self._value = prior

    def add(self, sample: float) -> None:
        """Add a sample."""
        self._samples.append(sample)
        self._value = float(np.quantile(self._samples, self._quantile, method="lower"))

    @property
    def value(self) -> float:
        """The quantile, or the prior."""
        return self._value

    @property
    def known(self) -> bool:
        """True if there is any sample."""
        return bool(self._samples)


@dataclass(slots=True)
class Share:
    """A chance learned from trials, of which old ones fade; the prior counts as `weight` trials."""

    prior: float
    weight: float
    memory: float = 200.0  # trials that count
    _hits: float = 0.0
    _trials: float = 0.0

    def add(self, hit: float, trials: float = 1.0) -> None:
        """Add trials; more than `memory` of them count as `memory`."""
        hit, trials = hit * min(1.0, self.memory / max(trials, 1.0)), min(trials, self.memory)
        self.fade(trials)
        self._hits += hit
        self._trials += trials

    def fade(self, trials: float = 1.0) -> None:
        """Let old trials fade as if this many unknown trials had come."""
        kept = 1 - min(trials, self.memory) / self.memory
        self._hits *= kept
        self._trials *= kept

    @property
    def value(self) -> float:
        """The posterior mean."""
        return (self.prior * self.weight + self._hits) / (self.weight + self._trials)


@dataclass(slots=True)
class ReadingTime:
    """The time of a forward, by its tokens: least squares with fading memory.

    Forwards of one size say nothing about the slope, so a weak prior ties it to the base.
    """

    base_ms: float
    token_ms: float
    slope_prior: float = _SLOPE_PRIOR  # of `token_ms`, as a share of `base_ms`
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # of 1, k, k*k, y, k*y

    @property
    def known(self) -> bool:
        """True if there is any sample."""
        return self._sums[0] > 0

    def add(self, tokens: int, elapsed_ms: float) -> None:
        """Add the time of one span."""
        row = (1.0, tokens, tokens * tokens, elapsed_ms, tokens * elapsed_ms)
        self._sums = [_FORGETTING * old + new for old, new in zip(self._sums, row, strict=True)]
        self._fit()

    def _fit(self) -> None:
        """Minimise sum (y - base - k token)^2 + (token - prior * base)^2 * spread."""
        ones, k, kk, y, ky = self._sums
        spread = 16.0
        prior = self.slope_prior
        a11, a12, a22 = ones + spread * prior**2, k - spread * prior, kk + spread
        determinant = a11 * a22 - a12 * a12
        base = (a22 * y - a12 * ky) / determinant
        token = (a11 * ky - a12 * y) / determinant
        if token < 0 or base <= 0:  # noise: all of it is base, or all of it slope
            base, token = (y / ones, 0.0) if token < 0 else (0.0, ky / kk)
        self.base_ms, self.token_ms = base, token

"""The best schedule of spans at given costs, and the rate that it reaches.

The model is an average-reward decision process over the moments when the cloud becomes free. The state is the *stock*:
tokens that are drafted and not sent. The action is the length K of the next span. With

    t_d    time of a draft
    V(K)   time in which the cloud reads a span
    R      round trip
    r      chance of an override at each token,  S_K = (1 - r)^K

a step has

    reward    1 + S_1 + ... + S_K tokens: those that stand, and the cloud's own
    duration  max(0, K - stock) t_d + V(K)
    next      with chance S_{K+1}   stock' = max(0, stock - K) + V(K) / t_d - 1: the tokens drafted in that time,
                                    without the bonus. The bonus must equal the token drafted there.
              otherwise             the restart: R passes before a new token can arrive. The stock is empty, or holds a
                                    branch that the override began.

The rate is the one at which the relative value of the restart is zero (Dinkelbach). Policy iteration finds it (Howard):
the rate of one choice of spans is a ratio of two expectations, tokens and time from one restart to the next. The spans
that are best at that rate make the next choice. After a restart the cloud may also stream to the end, or write on at
`stream_ms` a token until the next span arrives, so that the device need not draft these tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from chaperone_common.planning.costs import Costs

MAX_STOCK = 64
_MOST_STEPS = 50  # of policy iteration. It takes a few, but equally good choices may take turns.
_LEAST_RISK = 1e-6  # keeps the time to the next restart finite
ADVANTAGE = 1.05  # spans must promise this times the rate of streaming, which is certain
# Costs are rounded to this many steps an octave: fewer for costs that change a schedule less.
_PRECISIONS = {
    **dict.fromkeys(("draft_ms", "rtt_ms", "read_base_ms", "stream_ms", "risk"), 8),
    **dict.fromkeys(("read_token_ms", "foresight"), 4),
    "branch_tokens": 2,
}

Float64s = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rate of the best schedule, and its way to restart."""

    rate: float  # tokens a millisecond
    streams: bool  # plain streaming is as fast as anything
    cloud_writes_on: bool  # after an override, until the next span comes

    def delivering(self, share: float, costs: Costs) -> Schedule:
        """Return the schedule if only a share of its rate is reached: streaming, if that is then as fast."""
        if self.streams or self.rate * share * costs.stream_ms >= 1:
            return self
        return Schedule(1 / costs.stream_ms, streams=True, cloud_writes_on=True)


def schedule_for(costs: Costs) -> Schedule:
    """Return the schedule at these costs. They are rounded, so that a solution can be used again."""
    return _solved(Costs(**{name: _rounded(getattr(costs, name), steps) for name, steps in _PRECISIONS.items()}))


def _rounded(value: float, steps: int) -> float:
    if value <= 0:
        return 0.0
    return float(2.0 ** (round(math.log2(value) * steps) / steps))


@lru_cache(maxsize=4096)
def _solved(costs: Costs) -> Schedule:
    problem, streaming = _Problem(costs), 1 / costs.stream_ms
    rate, writes_on = problem.improved(streaming * ADVANTAGE)
    for _ in range(_MOST_STEPS):
        chosen = problem.spans
        rate, writes_on = problem.improved(rate)
        if np.array_equal(chosen, problem.spans):
            break
    if rate <= streaming * ADVANTAGE:
        return Schedule(streaming, streams=True, cloud_writes_on=True)
    return Schedule(rate, streams=False, cloud_writes_on=writes_on)


class _Problem:
    """The arrays of one decision process; rows are stocks, columns span lengths."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        spans = np.arange(1, MAX_STOCK + 1)
        stocks = np.arange(MAX_STOCK + 1)[:, np.newaxis]
        reading_ms = costs.read_base_ms + costs.read_token_ms * spans
        self.right = 1 - max(costs.risk, _LEAST_RISK)
        self.tokens = 1 + np.cumsum(self.right**spans)  # [K]
        self.goes_on = self.right ** (spans + 1)  # [K], the chance that the bonus is as drafted, too
        self.duration_ms = np.maximum(0, spans - stocks) * costs.draft_ms + reading_ms  # [stock, K]
        left = np.clip(np.maximum(0, stocks - spans) + reading_ms / costs.draft_ms - 1, 0, MAX_STOCK - 1e-9)
        self.below = left.astype(np.int64)  # the next stock [stock, K], whole tokens and the rest
        self.beyond = left - self.below
        self.spans = np.zeros(MAX_STOCK + 1, np.int64)  # [stock], the choice: columns
        self.tokens_ahead = np.zeros(MAX_STOCK + 1)  # [stock], expected up to the restart with the latest choice
        self.ms_ahead = np.zeros(MAX_STOCK + 1)

    def improved(self, rate: float) -> tuple[float, bool]:
        """Choose for each stock the span that is best if a millisecond costs `rate` tokens.

        Return the rate of that choice, and whether the cloud should write on after a restart. The value of later spans
        is that of the previous choice. From the second choice on, rates do not fall.
        """
        values = self.tokens_ahead - rate * self.ms_ahead
        later = values[self.below] + self.beyond * np.diff(values)[self.below]
        self._follow((self.tokens - rate * self.duration_ms + self.goes_on * later).argmax(axis=1))
        idle, writing = self._idling(), self._writing_on()
        return max(idle, writing), writing > idle

    def _follow(self, columns: NDArray[np.int64]) -> None:
        """Compute tokens and time up to the restart if each stock has its span: x = own + chance of a next * x."""
        self.spans, stocks = columns, np.arange(MAX_STOCK + 1)
        below, beyond, goes_on = self.below[stocks, columns], self.beyond[stocks, columns], self.goes_on[columns]
        onward = np.identity(MAX_STOCK + 1)
        onward[stocks, below] -= goes_on * (1 - beyond)
        onward[stocks, below + 1] -= goes_on * beyond
        own = np.stack([self.tokens[columns], self.duration_ms[stocks, columns]], axis=1)
        self.tokens_ahead, self.ms_ahead = np.linalg.solve(onward, own).T

    def _ahead(self, stocks: Float64s) -> tuple[Float64s, Float64s]:
        """Return tokens and time up to the restart, also for fractional stocks."""
        whole = np.arange(MAX_STOCK + 1)
        return np.interp(stocks, whole, self.tokens_ahead), np.interp(stocks, whole, self.ms_ahead)

    def _idling(self) -> float:
        """Return the rate if the cloud waits for the next span."""
        share = self.costs.foresight
        tokens, ms = self._ahead(np.array([0.0, self.costs.branch_tokens]))
        weights = np.array([1 - share, share])
        return float(weights @ tokens / (self.costs.rtt_ms + weights @ ms))

    def _writing_on(self) -> float:
        """Return the rate if the cloud writes until a span of n tokens arrives, for the best n."""
        costs = self.costs
        drafted = np.arange(1, MAX_STOCK + 1)
        window_ms = costs.rtt_ms + drafted * costs.draft_ms
        written = np.floor(window_ms / costs.stream_ms)
        ahead = drafted - written
        useful = (written > 0) & (ahead > 0)
        if not useful.any():
            return 0.0
        agreed = self.right**written
        tokens, ms = self._ahead(np.maximum(ahead, 0))
        # The cloud first finishes the forward that it has begun: half a forward on average.
        rates = (written + agreed * tokens) / (window_ms + costs.stream_ms / 2 + agreed * ms)
        return float(rates[useful].max())

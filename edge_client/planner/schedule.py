"""The long view: how fast spans can be at given costs, and what a stock of drafted tokens is worth.

An average-reward decision process over the moments when the cloud becomes free. The state is the stock, tokens drafted
and not sent; the action is how many tokens K the next span has. With t_d a draft's time, V(K) a reading's, R the round
trip, r the chance of an override at each token and S_K = (1 - r)^K:

    reward    1 + S_1 + ... + S_K tokens: those that stand, and the cloud's own
    duration  max(0, K - stock) t_d + V(K)
    next      with chance S_{K+1}   stock' = max(0, stock - K) + V(K) / t_d - 1: what was drafted meanwhile, less the
                                    bonus, which has to be what the device drafted there, or all behind it is void
              else                  the restart: R passes before a new token can arrive, the stock is empty, or what
                                    a branch holds if the override was foreseen

The rate is the one at which the relative value of the restart is nil (Dinkelbach). It is found by policy iteration
(Howard): the rate of one choice of spans is a ratio of two expectations, tokens and time from one restart to the next,
and the spans that are best at that rate make the next choice. The restart has two other ways: the cloud streams for
good, or it writes on until the next span arrives, at `stream_ms` a token, and what it wrote meanwhile does not have to
be drafted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_client.planner.costs import Costs

MAX_STOCK = 64
_MOST_STEPS = 50  # of policy iteration, which takes a few; choices that are equally good may take turns
_LEAST_RISK = 1e-6  # for a finite time to the next restart
_ADVANTAGE = 1.05  # over streaming, which is sure, that spans must promise
# What a schedule depends on, in steps an octave: fewer where it depends on it less.
_PRECISIONS = {
    **dict.fromkeys(("draft_ms", "rtt_ms", "read_base_ms", "stream_ms", "risk"), 8),
    **dict.fromkeys(("read_token_ms", "foresight"), 4),
    "branch_tokens": 2,
}

Float64s = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the best schedule reaches, and what it does at a restart."""

    rate: float  # tokens a millisecond
    streams: bool  # plain streaming is as fast as anything
    cloud_writes_on: bool  # after an override, until the next span comes

    def delivering(self, share: float, costs: Costs) -> Schedule:
        """The schedule if only a share of its rate comes true: streaming, which is sure, may then be as fast."""
        if self.streams or self.rate * share * costs.stream_ms >= 1:
            return self
        return Schedule(1 / costs.stream_ms, streams=True, cloud_writes_on=True)


def schedule_for(costs: Costs) -> Schedule:
    """The schedule at these costs, each rounded to the next of some steps an octave, so that it is seldom solved."""
    return _solved(Costs(**{name: _rounded(getattr(costs, name), steps) for name, steps in _PRECISIONS.items()}))


def _rounded(value: float, steps: int) -> float:
    if value <= 0:
        return 0.0
    return float(2.0 ** (round(math.log2(value) * steps) / steps))


@lru_cache(maxsize=4096)
def _solved(costs: Costs) -> Schedule:
    problem, streaming = _Problem(costs), 1 / costs.stream_ms
    rate, writes_on = problem.improved(streaming * _ADVANTAGE)
    for _ in range(_MOST_STEPS):
        chosen = problem.spans
        rate, writes_on = problem.improved(rate)
        if np.array_equal(chosen, problem.spans):
            break
    if rate <= streaming * _ADVANTAGE:
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
        """The rate with the spans that are best, for one span each, if a millisecond costs `rate` tokens.

        And whether the cloud had better write on after a restart. What follows those spans is valued as the choice
        before; from the second choice on, no rate is below the one before it.
        """
        values = self.tokens_ahead - rate * self.ms_ahead
        later = values[self.below] + self.beyond * np.diff(values)[self.below]
        self._follow((self.tokens - rate * self.duration_ms + self.goes_on * later).argmax(axis=1))
        idle, writing = self._idling(), self._writing_on()
        return max(idle, writing), writing > idle

    def _follow(self, columns: NDArray[np.int64]) -> None:
        """Reckon tokens and time up to the restart where each stock has its span: x = own + chance of a next * x."""
        self.spans, stocks = columns, np.arange(MAX_STOCK + 1)
        below, beyond, goes_on = self.below[stocks, columns], self.beyond[stocks, columns], self.goes_on[columns]
        onward = np.identity(MAX_STOCK + 1)
        onward[stocks, below] -= goes_on * (1 - beyond)
        onward[stocks, below + 1] -= goes_on * beyond
        own = np.stack([self.tokens[columns], self.duration_ms[stocks, columns]], axis=1)
        self.tokens_ahead, self.ms_ahead = np.linalg.solve(onward, own).T

    def _ahead(self, stocks: Float64s) -> tuple[Float64s, Float64s]:
        """Tokens and time up to the restart, from stocks between whole ones as well."""
        whole = np.arange(MAX_STOCK + 1)
        return np.interp(stocks, whole, self.tokens_ahead), np.interp(stocks, whole, self.ms_ahead)

    def _idling(self) -> float:
        """The rate if the cloud waits for the next span."""
        share = self.costs.foresight
        tokens, ms = self._ahead(np.array([0.0, self.costs.branch_tokens]))
        weights = np.array([1 - share, share])
        return float(weights @ tokens / (self.costs.rtt_ms + weights @ ms))

    def _writing_on(self) -> float:
        """The rate if the cloud writes until a span of n tokens arrives, for the best n."""
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
        # A forward of the cloud's that has begun is finished first: half of one, on average.
        rates = (written + agreed * tokens) / (window_ms + costs.stream_ms / 2 + agreed * ms)
        return float(rates[useful].max())

"""The long view: how fast spans can be at given costs, and what a stock of drafted tokens is worth.

An average-reward decision process over the moments when the cloud becomes free. The state is the stock, tokens drafted
and not sent; the action is how many tokens K the next span has. With t_d a draft's time, V(K) a reading's, R the round
trip, r the chance of an override at each token and S_K = (1 - r)^K:

    reward    1 + S_1 + ... + S_K tokens: those that stand, and the cloud's own
    duration  max(0, K - stock) t_d + V(K)
    next      with chance S_K   stock' = max(0, stock - K) + V(K) / t_d - 1: what was drafted meanwhile, less the bonus
              else              the restart: R passes before a new token can arrive, the stock is empty, or what
                                a branch holds if the override was foreseen

The rate is the one at which the relative value of the restart is nil (Dinkelbach). The restart has two other ways: the
cloud streams for good, or it writes on until the next span arrives, at `stream_ms` a token, and what it wrote meanwhile
does not have to be drafted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.planner.costs import Costs

MAX_STOCK = 64
_PRECISION = 1.003
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
    problem = _Problem(costs)
    slowest = 1 / costs.stream_ms
    restart, writes_on = problem.restart(slowest * _ADVANTAGE)
    if restart <= 0:
        return Schedule(slowest, streams=True, cloud_writes_on=True)
    fastest = max(2 * slowest, 2 / costs.draft_ms)
    while fastest / slowest > _PRECISION:
        rate = math.sqrt(fastest * slowest)
        restart, writes_on = problem.restart(rate)
        if restart > 0:
            slowest = rate
        else:
            fastest = rate
    return Schedule(slowest, streams=False, cloud_writes_on=writes_on)


class _Problem:
    """The arrays of one decision process; rows are stocks, columns span lengths."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        spans = np.arange(1, MAX_STOCK + 1)
        stocks = np.arange(MAX_STOCK + 1)[:, np.newaxis]
        reading_ms = costs.read_base_ms + costs.read_token_ms * spans
        self.stands = (1 - costs.risk) ** spans  # [K]
        self.tokens = 1 + np.cumsum(self.stands)  # [K]
        self.duration_ms = np.maximum(0, spans - stocks) * costs.draft_ms + reading_ms  # [stock, K]
        left = np.clip(np.maximum(0, stocks - spans) + reading_ms / costs.draft_ms - 1, 0, MAX_STOCK - 1e-9)
        self.below = left.astype(np.int64)  # the next stock [stock, K], whole tokens and the rest
        self.beyond = left - self.below
        self.values = np.zeros(MAX_STOCK + 1)  # [stock]; the search goes on from the last ones

    def restart(self, rate: float) -> tuple[float, bool]:
        """The value of a restart if each millisecond costs `rate` tokens: above nil if that rate can be beaten.

        And whether the cloud had better write on meanwhile.
        """
        gains = self.tokens - rate * self.duration_ms
        values = self.values
        for _ in range(200):
            later = values[self.below] + self.beyond * np.diff(values)[self.below]
            improved = (gains + self.stands * later).max(axis=1)
            settled = np.abs(improved - values).max() < 1e-3
            self.values = values = improved
            if settled:
                break
        costs = self.costs
        foreseen = float(np.interp(costs.branch_tokens, np.arange(MAX_STOCK + 1), values))
        idle = -rate * costs.rtt_ms + costs.foresight * foreseen + (1 - costs.foresight) * float(values[0])
        writing = self._writing_on(rate, values)
        return max(idle, writing), writing > idle

    def _writing_on(self, rate: float, values: Float64s) -> float:
        """The restart's value if the cloud writes until a span of n tokens arrives, for the best n."""
        costs = self.costs
        drafted = np.arange(1, MAX_STOCK + 1)
        window_ms = costs.rtt_ms + drafted * costs.draft_ms
        written = np.floor(window_ms / costs.stream_ms)
        ahead = drafted - written
        useful = (written > 0) & (ahead > 0)
        if not useful.any():
            return -math.inf
        # A forward of the cloud's that has begun is finished first: half of one, on average.
        spent = rate * (window_ms + costs.stream_ms / 2)
        agreed = (1 - costs.risk) ** written
        value = written - spent + agreed * np.interp(np.maximum(ahead, 0), np.arange(MAX_STOCK + 1), values)
        return float(value[useful].max())

"""Promises over a workload, kept by a threshold that follows it.

Two promises: a share `catch` of all overrides is caught, and at most `max_deviation` of all tokens deviate. Each has a
*budget*, in deviations, which audits and verdicts fill and empty:

    catch:          + (1 - catch) for each override that was caught,   - catch for each deviation
    max_deviation:  + max_deviation for each token judged or audited,  - 1     for each deviation

so that a budget of at least -B says that the promise is kept up to B deviations, whatever the tokens were like. Once
it falls below `-RESERVE` every token is asked about: deviations can then only come from tokens whose skipping was
decided before and that are not read yet, and the budget grows with each override or token. It may be lower by
`1 - catch`, or `max_deviation`, for each token that waits for its audit: the bound below allows a whole deviation for
each, and one found there takes only `catch`, or `1 - max_deviation`, from the budget. They are read in any order, and
where many texts are written at once, chance finds more deviations among those that come first than a reserve can hold.
This is the long-run bound on what the audits find, where every skipped token is audited:

    deviations <= (1 - catch) * overrides + RESERVE + 1 + unread
    deviations <= max_deviation * final tokens + RESERVE + 1 + unread

where `unread` are the tokens whose skipping was decided, and that were not read when the last one was skipped (online
risk control: Gibbs and Candes, arXiv 2106.00170; Feldman et al., arXiv 2205.09095; no assumption on the data). Where
only a share of the texts is audited, a deviation in one of them counts for the others: the bound then holds in
expectation, and the terms behind `RESERVE` grow by as much.

Within it the threshold follows the workload before any verdict does. Tokens that are final enter a fading histogram of
risk. If the risk ranks tokens as well here as elsewhere, the threshold below which a share `1 - catch` of all *risk*
lies misses that share of the overrides, whatever the task is and however wrong the risks are by a common factor. A
ceiling on deviations needs that factor: it is learned from the audits, as deviations found over those foretold. The
share is multiplied by `exp(GAIN * budget)`, for the ceiling `exp(GAIN * (budget - CLEARANCE))`, so that feedback
corrects what the histogram cannot know. An audit may be long in coming, and with many texts at once many tokens wait
for one. So what these will do to the budget, if their risks are right but for the factor, is reckoned with beforehand
(a Smith predictor, after O. J. M. Smith, 1957): else the threshold would go on rising until the first of them are read,
and then everything would be asked about. What they are expected to take may be saved up for, beyond `MOST`.

If a drift makes the gate miss a share x of the overrides instead of `1 - catch`, everything is asked about after
`RESERVE / (x - (1 - catch))` overrides from an even budget, and `(MOST + RESERVE) / (x - (1 - catch))` from a full one,
where nothing waits for an audit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from chaperone_common.types import Promises
from edge_client.gate.risk_histogram import ALL, NONE, Calibration

RESERVE = 6.0  # deviations: what chance alone may use up, or everything would be asked about every so often
CLEARANCE = 3.0  # deviations by which a ceiling is stayed under, so that chance does not lead above it half of the time
GAIN = 0.25  # a deviation lowers the share of risk that is let pass by a fifth
MOST = 6.0  # deviations that a budget may save up: what was easy is no licence for what comes
MEMORY = 600.0  # tokens that the histogram remembers
LEAST_KNOWN = 30.0  # tokens without which it says nothing: all are asked about
SCALE_MEMORY = 100.0  # deviations that the factor of the risks is learned from
SCALE_PRIOR = 10.0  # as if so many had been found where so many were foretold
_KEPT = 1.0 - 1.0 / MEMORY  # of an old token when a new one comes
_EDGES = np.linspace(-14.0, 14.0, 141)  # log-odds of risk


@dataclass(slots=True, eq=False)
class Unread:
    """How many tokens of one generation were skipped and not read yet, and their risk."""

    tokens: int = 0
    risk: float = 0.0


@dataclass(slots=True)
class Budget:
    """Of one promise: how many more deviations it allows now."""

    left: float = 0.0

    def pressure(self, expected: float) -> float:
        """What the share of risk that is let pass is multiplied by; `expected` is what waits to be added."""
        return math.exp(GAIN * min(self.left + expected, MOST))

    def add(self, amount: float, expected: float) -> None:
        """What is expected to be lost may be saved up beforehand."""
        self.left = min(self.left + amount, MOST - min(expected, 0.0))


@dataclass(slots=True)
class RiskScale:
    """By what factor the risks of skipped tokens are off: deviations found over those foretold; old ones fade."""

    foretold: float = 0.0
    found: float = 0.0

    @property
    def factor(self) -> float:
        """What a risk is to be multiplied by."""
        return (self.found + SCALE_PRIOR) / (self.foretold + SCALE_PRIOR)

    def add(self, foretold: float, found: float) -> None:
        kept = math.exp(-max(foretold, found) / SCALE_MEMORY)
        self.foretold = kept * self.foretold + foretold
        self.found = kept * self.found + found


class RiskHistogram:
    """How much risk, and how many tokens, lie below a threshold; old tokens fade."""

    def __init__(self) -> None:
        self._mass: NDArray[np.float64] = np.zeros(len(_EDGES) + 1)  # of risk, by interval of log-odds
        self.tokens = 0.0

    @classmethod
    def of(cls, risks: NDArray[np.float64]) -> Self:
        """What these tokens, [tokens], leave behind if their order says nothing."""
        histogram = cls()
        share = min(MEMORY / max(len(risks), 1), 1.0)
        for risk in risks:
            histogram._mass[_interval(risk)] += risk * share
        histogram.tokens = len(risks) * share
        return histogram

    def add(self, risk: float) -> None:
        """Take in a token."""
        self._mass *= _KEPT
        self._mass[_interval(risk)] += risk
        self.tokens = self.tokens * _KEPT + 1

    @property
    def mass(self) -> float:
        """All risk."""
        return float(self._mass.sum())

    def below(self, threshold: float) -> float:
        """The risk of all tokens that a threshold skips."""
        place = _log_odds(threshold)
        index = _interval(threshold)
        below = float(self._mass[:index].sum())
        if 0 < index < len(_EDGES):
            below += float(self._mass[index]) * (place - _EDGES[index - 1]) / (_EDGES[index] - _EDGES[index - 1])
        return below

    def threshold(self, mass: float) -> float:
        """The threshold below which so much risk lies; `ALL` if there is no more than that."""
        total = np.cumsum(self._mass)
        if mass >= total[-1] > 0:
            return ALL
        index = int(np.searchsorted(total, mass, side="right"))
        if index in (0, len(total)):  # all that is known is nearly sure: anything else is asked about
            return _risk(float(_EDGES[0]))
        before = float(total[index - 1])
        share = (mass - before) / (float(total[index]) - before)
        return _risk(float(_EDGES[index - 1] + share * (_EDGES[index] - _EDGES[index - 1])))


@dataclass(slots=True)
class Totals:
    """What became of a workload's tokens."""

    tokens: int = 0  # final, of the device's own or in their place
    caught: int = 0
    audited: int = 0  # skipped ones that the cloud has read
    deviations: float = 0.0  # found there, each for as many as it stands for

    @property
    def catch(self) -> float | None:
        """The share of the overrides that was caught; None before the first."""
        overrides = self.caught + self.deviations
        return self.caught / overrides if overrides else None


class Control:
    """The threshold of one workload: of all generations of a client, say, one after the other or at the same time."""

    def __init__(self, promises: Promises, calibration: Calibration | None = None) -> None:
        """Begin where `calibration` says; without one, with nothing known, all is asked about at first."""
        self.promises = promises
        self.totals = Totals()
        self._catch = Budget()
        self._deviation = Budget()
        self._unread: set[Unread] = set()  # of the gates that are open
        self._scale = RiskScale()
        self._histogram = RiskHistogram()
        # What is let pass while a budget is at its aim: a share of all risk, and risk a token. What a calibration
        # proves fades as the workload's own tokens come: it is where to begin, and feedback could not undo a share of
        # nothing.
        self._proved_shares = (1.0 - promises.catch, promises.max_deviation)
        self._proof = 0.0  # how much of it is left
        if calibration is not None and calibration.risks.any():
            self._begin_at(calibration)

    def _begin_at(self, calibration: Calibration) -> None:
        """Let the histogram be that of the calibration, and the first thresholds those that are proved on it."""
        self._histogram = RiskHistogram.of(calibration.risks)
        histogram, promises = self._histogram, self.promises
        self._proved_shares = (
            histogram.below(calibration.for_catch(promises.catch)) / histogram.mass,
            histogram.below(calibration.for_deviation(promises.max_deviation)) / histogram.tokens,
        )
        self._proof = 1.0

    @property
    def threshold(self) -> float:
        """The risk from which on tokens are asked about."""
        return min(self._for_catch(), self._for_deviation())

    def register(self) -> Unread:
        """Return the count of a new generation's unread tokens; it is included until `unregister`."""
        unread = Unread()
        self._unread.add(unread)
        return unread

    def unregister(self, unread: Unread) -> None:
        """Leave out a generation's unread tokens: nothing will audit them. Idempotent."""
        self._unread.discard(unread)

    def record_token(self, risk: float, *, skipped: bool) -> None:
        """A token of the device's, or one in its place, is final; a skipped one is to be audited."""
        self.totals.tokens += 1
        self._histogram.add(risk)
        self._proof *= _KEPT
        if not skipped:
            self._deviation.add(self.promises.max_deviation, self._expected_deviation())

    def record_caught(self) -> None:
        """The cloud overrode a token that was not final."""
        self.totals.caught += 1
        self._catch.add(1.0 - self.promises.catch, self._expected_catch())

    def record_audit(self, tokens: int, deviations: int, *, foretold: float, weight: float = 1.0) -> None:
        """The cloud has read skipped tokens, of so much risk; each stands for `weight`, where not all are read."""
        self.totals.audited += tokens
        self.totals.deviations += weight * deviations
        self._scale.add(foretold, deviations)
        self._catch.add(-self.promises.catch * weight * deviations, self._expected_catch())
        self._deviation.add(weight * (self.promises.max_deviation * tokens - deviations), self._expected_deviation())

    def _for_catch(self) -> float:
        if self.promises.catch <= 0:
            return ALL
        if self._is_spent(self._catch, 1.0 - self.promises.catch) or self._histogram.tokens < LEAST_KNOWN:
            return NONE
        share = self._share(self._proved_shares[0], 1.0 - self.promises.catch)
        if share <= 0:
            return NONE
        return self._histogram.threshold(share * self._catch.pressure(self._expected_catch()) * self._histogram.mass)

    def _for_deviation(self) -> float:
        if self.promises.max_deviation >= 1:
            return ALL
        if self._is_spent(self._deviation, self.promises.max_deviation) or self._histogram.tokens < LEAST_KNOWN:
            return NONE
        share = self._share(self._proved_shares[1], self.promises.max_deviation)
        if share <= 0:
            return NONE
        pressure = self._deviation.pressure(self._expected_deviation() - CLEARANCE)
        return self._histogram.threshold(share / self._scale.factor * pressure * self._histogram.tokens)

    def _is_spent(self, budget: Budget, allowance: float) -> bool:
        """Whether skipping one more token could break the bound; each unread token allows for `allowance` more."""
        return budget.left + allowance * self._waiting()[0] < -RESERVE

    def _expected_catch(self) -> float:
        """What the tokens that wait for their audit will add to the budget, if their risks are right."""
        tokens, risk = self._waiting()
        overrides = tokens * self._histogram.mass / max(self._histogram.tokens, 1.0)
        return self._scale.factor * ((1.0 - self.promises.catch) * overrides - risk)

    def _expected_deviation(self) -> float:
        tokens, risk = self._waiting()
        return self.promises.max_deviation * tokens - self._scale.factor * risk

    def _waiting(self) -> tuple[int, float]:
        """How many tokens of all generations wait for their audit, and their risk; in whatever order they come."""
        return sum(one.tokens for one in self._unread), math.fsum(one.risk for one in self._unread)

    def _share(self, proved: float, promised: float) -> float:
        return self._proof * proved + (1.0 - self._proof) * promised


def _interval(risk: float) -> int:
    return int(np.searchsorted(_EDGES, _log_odds(risk)))


def _log_odds(risk: float) -> float:
    risk = min(max(risk, 1e-9), 1.0 - 1e-9)
    return min(max(math.log(risk / (1.0 - risk)), float(_EDGES[0])), float(_EDGES[-1]))


def _risk(log_odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-log_odds))

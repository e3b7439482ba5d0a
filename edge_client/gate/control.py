"""The threshold of one workload, which keeps two promises over all of its tokens.

The promises: the gate catches a share `catch` of all overrides, and at most `max_deviation` of all tokens deviate.
Each promise has a *budget*, counted in deviations. Verdicts and audits change it:

    catch:          + (1 - catch) for each override that was caught,   - catch for each deviation
    max_deviation:  + max_deviation for each token judged or audited,  - 1     for each deviation

A budget of at least -B means that the promise is kept up to B deviations, whatever the tokens are like. Below
`-RESERVE` the gate asks about every token. Then only unread tokens can still deviate, whose skipping was decided
before, and every override or token adds to the budget. An unread token moves this limit down by `1 - catch`, or by
`max_deviation`: the bound below counts it as a whole deviation, and a deviation found there takes only `catch`, or
`1 - max_deviation`, from the budget. That matters if many texts are written at once, and audits come in any order.

If every skipped token is audited, the audits find in the long run at most

    deviations <= (1 - catch) * overrides + RESERVE + 1 + unread
    deviations <= max_deviation * final tokens + RESERVE + 1 + unread

where `unread` counts the tokens that were skipped and not read when the last one was skipped. This is online risk
control (Gibbs and Candes, arXiv 2106.00170; Feldman et al., arXiv 2205.09095) and assumes nothing about the data. If
only a share of the texts is audited, a deviation in one of them counts for the others. The bound then holds in
expectation, and the terms after `RESERVE` grow by the same factor.

A new client starts with budgets of 0, so the bound holds from its first token, with the same terms.

Within the bound the threshold follows the workload before any verdict does. Final tokens enter a fading histogram of
risk. It begins with the held-out tokens, and these weigh little (`PRIOR`): a client's first text outweighs them.

Suppose that the risk ranks tokens here as well as elsewhere. Then the threshold that skips a share `1 - catch` of all
*risk* misses that share of the overrides, even if all risks are wrong by one factor. A ceiling on deviations needs
that factor. It is learned from audits: deviations found, divided by the sum of the risks. Feedback corrects the rest:

    share of risk that is skipped  *=  exp(GAIN * budget)                for `catch`
    share of risk that is skipped  *=  exp(GAIN * (budget - CLEARANCE))  for `max_deviation`

An audit may come late, and with many texts many tokens are unread. So the budget includes the change that their risks
predict (a Smith predictor, after O. J. M. Smith, 1957). Otherwise the threshold would rise until the first audit, and
then drop to nothing. A budget may save up more than `MOST` if unread tokens are expected to use it.

Suppose that a drift makes the gate miss a share x of the overrides instead of `1 - catch`, and nothing is unread. Then
it asks about every token after `RESERVE / (x - (1 - catch))` overrides from an even budget, and after
`(MOST + RESERVE) / (x - (1 - catch))` from a full one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from chaperone_common.types import Promises
from edge_client.gate.held_out import HeldOutRisks
from edge_client.gate.risk_histogram import FADING, SKIP_ALL, SKIP_NONE, RiskHistogram

# Deviations that chance alone may use up. With fewer, the gate would often ask about every token.
RESERVE = 6.0
# Distance to keep from a ceiling, in deviations. Without it, chance would exceed the ceiling half of the time.
CLEARANCE = 3.0
# A deviation lowers the share of risk that is skipped by a fifth.
GAIN = 0.25
# Deviations that a budget may save up. An easy part of the workload allows no more for the next part.
MOST = 6.0
# Tokens that the histogram needs. Until then the gate asks about every token.
LEAST_KNOWN = 30.0
# Deviations that the factor of the risks is learned from.
SCALE_MEMORY = 100.0
# The factor begins at 1, as if this many deviations had been expected and found.
SCALE_PRIOR = 10.0


@dataclass(slots=True, eq=False)
class Unread:
    """The number of skipped tokens of one generation that the cloud has not read, and the sum of their risks."""

    tokens: int = 0
    risk: float = 0.0


@dataclass(slots=True)
class Budget:
    """The deviations that one promise allows now, and the share of risk that it allows to skip."""

    # What one override, or one token, adds to the budget.
    allowance: float
    # Nothing is promised.
    off: bool
    # Share of risk that may be skipped with an even budget, proved on held-out tokens.
    proved_share: float
    # Deviations that are left.
    left: float = 0.0

    def pressure(self, expected: float) -> float:
        """Return the factor for the share of risk that is skipped; unread tokens are `expected` to add this much."""
        return math.exp(GAIN * min(self.left + expected, MOST))

    def add(self, amount: float, expected: float) -> None:
        """Change the budget. It may save up more than `MOST` if unread tokens are `expected` to take it."""
        self.left = min(self.left + amount, MOST - min(expected, 0.0))

    def share(self, proof: float) -> float:
        """Return the share of risk that may be skipped; `proof` is the weight of the held-out tokens, in [0, 1]."""
        return proof * self.proved_share + (1.0 - proof) * self.allowance

    def is_spent(self, unread: int) -> bool:
        """Return whether skipping one more token could break the bound."""
        return self.left + self.allowance * unread < -RESERVE


@dataclass(slots=True)
class RiskScale:
    """The factor that risks of skipped tokens are wrong by: deviations found over expected ones; old ones fade."""

    expected: float = 0.0
    found: float = 0.0

    @property
    def factor(self) -> float:
        """The factor to multiply a risk by."""
        return (self.found + SCALE_PRIOR) / (self.expected + SCALE_PRIOR)

    def add(self, expected: float, found: float) -> None:
        """Add an audit."""
        kept = math.exp(-max(expected, found) / SCALE_MEMORY)
        self.expected = kept * self.expected + expected
        self.found = kept * self.found + found


@dataclass(slots=True)
class Totals:
    """Token counts of a workload."""

    tokens: int = 0  # final tokens that the device drafted, or that replaced a drafted one
    caught: int = 0  # overrides of tokens that were not final
    audited: int = 0  # skipped tokens that the cloud has read
    deviations: float = 0.0  # found in audits, each times the generations that it stands for

    @property
    def catch(self) -> float | None:
        """The share of the overrides that was caught; None before the first override."""
        overrides = self.caught + self.deviations
        return self.caught / overrides if overrides else None


class Control:
    """The threshold of one workload, such as all generations of a client, in turn or at the same time."""

    def __init__(self, promises: Promises, held_out: HeldOutRisks | None = None) -> None:
        """Begin with the thresholds proved on `held_out`; without it, ask about every token at first."""
        self.promises = promises
        self.totals = Totals()
        self._unread: set[Unread] = set()  # of the gates that are open
        self._scale = RiskScale()
        self._histogram = RiskHistogram()
        catch, most = promises.catch, promises.max_deviation
        proved = (1.0 - catch, most)
        # The weight of the proof. It fades as the workload's own tokens come: a proved share of 0 would stay 0,
        # whatever the budget.
        self._proof = 0.0
        if held_out is not None and held_out.risks.any():
            histogram = self._histogram = RiskHistogram.of(held_out.risks)
            proved = (
                histogram.below(held_out.for_catch(catch)) / histogram.mass,
                histogram.below(held_out.for_deviation(most)) / histogram.tokens,
            )
            self._proof = 1.0
        self._catch = Budget(1.0 - catch, catch <= 0, proved[0])
        self._deviation = Budget(most, most >= 1, proved[1])

    @property
    def threshold(self) -> float:
        """The risk from which on the gate asks about a token."""
        histogram = self._histogram
        expected = self._expected_deviation() - CLEARANCE
        return min(
            self._allowed(self._catch, self._expected_catch(), 1.0, histogram.mass),
            self._allowed(self._deviation, expected, self._scale.factor, histogram.tokens),
        )

    def register(self) -> Unread:
        """Return the count of a new generation's unread tokens; it is included until `unregister`."""
        unread = Unread()
        self._unread.add(unread)
        return unread

    def unregister(self, unread: Unread) -> None:
        """Leave out a generation's unread tokens: nothing will audit them. Idempotent."""
        self._unread.discard(unread)

    def record_token(self, risk: float, *, skipped: bool) -> None:
        """Count a final token that the device drafted, or that replaced a drafted one.

        A `skipped` token counts for `max_deviation` only once it is audited.
        """
        self.totals.tokens += 1
        self._histogram.add(risk)
        self._proof *= FADING
        if not skipped:
            self._deviation.add(self.promises.max_deviation, self._expected_deviation())

    def record_unasked(self, risk: float) -> None:
        """Learn the risk of a token that no promise covers. It counts for no budget, and is not in the totals."""
        self._histogram.add(risk)
        self._proof *= FADING

    def record_caught(self) -> None:
        """Count an override of a token that was not final."""
        self.totals.caught += 1
        self._catch.add(1.0 - self.promises.catch, self._expected_catch())

    def record_audit(self, tokens: int, deviations: int, *, expected: float, weight: float = 1.0) -> None:
        """Count an audit of skipped tokens, whose risks sum up to `expected`.

        `weight` is the number of generations that an audited one stands for.
        """
        self.totals.audited += tokens
        self.totals.deviations += weight * deviations
        self._scale.add(expected, deviations)
        self._catch.add(-self.promises.catch * weight * deviations, self._expected_catch())
        self._deviation.add(weight * (self.promises.max_deviation * tokens - deviations), self._expected_deviation())

    def _allowed(self, budget: Budget, expected: float, scale: float, total: float) -> float:
        """Return the highest threshold that one promise allows.

        It skips a share of `total`, risks divided by `scale`. Unread tokens are `expected` to add to the budget.
        """
        if budget.off:
            return SKIP_ALL
        share = budget.share(self._proof)
        if share <= 0 or budget.is_spent(self._waiting()[0]) or self._histogram.tokens < LEAST_KNOWN:
            return SKIP_NONE
        return self._histogram.threshold(share / scale * budget.pressure(expected) * total)

    def _expected_catch(self) -> float:
        """Return what the unread tokens will add to the budget of `catch`, if their risks are right."""
        tokens, risk = self._waiting()
        overrides = tokens * self._histogram.mass / max(self._histogram.tokens, 1.0)
        return self._scale.factor * ((1.0 - self.promises.catch) * overrides - risk)

    def _expected_deviation(self) -> float:
        """Return what the unread tokens will add to the budget of `max_deviation`, if their risks are right."""
        tokens, risk = self._waiting()
        return self.promises.max_deviation * tokens - self._scale.factor * risk

    def _waiting(self) -> tuple[int, float]:
        """Return the number of unread tokens of all open gates, and the sum of their risks, in no order."""
        return sum(one.tokens for one in self._unread), math.fsum(one.risk for one in self._unread)

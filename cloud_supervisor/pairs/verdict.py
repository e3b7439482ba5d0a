"""The verdict whether a pair is worth it, by the planner's own cost model.

The planner hands a text over to the cloud unless its best schedule promises 1.05 times the rate of plain streaming
(`chaperone_common.planning.schedule`). A pair is worth it if it passes that rule at the given costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from chaperone_common.planning.costs import Costs
from chaperone_common.planning.schedule import ADVANTAGE, schedule_for

Answer = Literal["yes", "no", "open", "impossible"]

RULE = (
    f"worth it if the planner's best schedule is at least {ADVANTAGE} times as fast as plain streaming from the cloud; "
    "otherwise the planner itself would only stream"
)
_STEPS = 100  # agreements are tried in steps of a hundredth
_Z = 1.96  # standard deviations of a 95% interval


@dataclass(frozen=True)
class Agreement:
    """Tokens of the large model that the small one would have written."""

    agreed: int
    tokens: int

    @property
    def share(self) -> float:
        """The share of tokens on which both agree."""
        return self.agreed / self.tokens

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share, by Wilson. It takes tokens as independent, so it is rather too narrow."""
        spread, centre = _Z * _Z / self.tokens, self.share
        middle = (centre + spread / 2) / (1 + spread)
        half = _Z * math.sqrt(centre * (1 - centre) / self.tokens + spread / (4 * self.tokens)) / (1 + spread)
        return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True)
class Verdict:
    """The answer, with the numbers that it follows from."""

    answer: Answer
    speedup: float | None  # over plain streaming at the measured agreement
    least_agreement: float | None  # from which the pair is worth it; None: at no agreement
    reason: str


def speedup(costs: Costs, agreement: float) -> float:
    """Return how many times as fast as plain streaming the planner's best schedule is; 1 if it is streaming."""
    at = replace(costs, risk=1 - agreement)
    schedule = schedule_for(at)
    return 1.0 if schedule.streams else schedule.rate * at.stream_ms


def least_agreement(costs: Costs) -> float | None:
    """Return the least agreement, in hundredths, from which on the pair is worth it; None if there is none."""
    low, high = 0, _STEPS
    if speedup(costs, 1.0) <= 1:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if speedup(costs, middle / _STEPS) > 1 else (middle, high)
    return high / _STEPS


def judge(costs: Costs, agreement: Agreement | None) -> Verdict:
    """Return whether a pair of these costs and this agreement is worth it."""
    least = least_agreement(costs)
    if least is None:
        reason = "at these times drafting cannot pay, even if both models always agreed; the cloud streams as fast"
        return Verdict("no", 1.0, None, reason)
    if agreement is None:
        reason = f"the agreement of the models was not measured; the pair is worth it from {least:.2f} on"
        return Verdict("open", None, least, reason)
    gain = speedup(costs, agreement.share)
    low, high = agreement.interval
    if low >= least:
        reason = f"`exact` writes about {gain:.1f} times as fast as plain streaming"
        return Verdict("yes", gain, least, reason)
    if high < least:
        reason = f"the models agree on {agreement.share:.2f} of the tokens, and {least:.2f} are needed"
        return Verdict("no", gain, least, reason)
    reason = (
        f"{least:.2f} of the tokens must agree, and {agreement.tokens} tokens show only that between {low:.2f} and "
        f"{high:.2f} do; measure more with --max-new-tokens or --prompts"
    )
    return Verdict("open", gain, least, reason)


def impossible(reason: str) -> Verdict:
    """Return the verdict on two models that cannot be a pair."""
    return Verdict("impossible", None, None, reason)

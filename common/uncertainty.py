"""Signals: what the small model's scores say about how likely the cloud is to disagree."""

from __future__ import annotations

import math

from common.sampling import Softmax
from common.types import Choice, Signal


def measure(soft: Softmax, choice: Choice) -> Signal:
    """Measure the distribution a token was chosen from, before truncation.

    Entropy is in nats. At temperature 0 the distribution is the softmax at temperature 1.
    """
    weights = soft.weights
    entropy = math.log(soft.total) - float(weights @ soft.scaled) / soft.total
    top = 1.0 / soft.total
    second = _second_weight(soft) / soft.total
    return Signal(
        entropy_nats=max(entropy, 0.0),
        top1_probability=top,
        margin=top - second,
        coupled_margin=choice.coupled_margin,
        risk=risk(entropy, choice.coupled_margin),
    )


def risk(entropy_nats: float, coupled_margin: float) -> float:
    """A first, uncalibrated estimate of the probability that the cloud chooses another token.

    If the cloud's log-scores differ from the draft's by logistic noise, the runner-up wins with probability
    `sigmoid(-coupled_margin)`; where the distribution is sharp (low entropy) there is little left to disagree on.
    """
    return (1.0 - math.exp(-max(entropy_nats, 0.0))) / (1.0 + math.exp(coupled_margin))


def _second_weight(soft: Softmax) -> float:
    left, right = soft.weights[: soft.top], soft.weights[soft.top + 1 :]
    return max((float(part.max()) for part in (left, right) if len(part)), default=0.0)

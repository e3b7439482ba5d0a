"""Signals: what the small model's scores say about how likely the cloud is to disagree."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from chaperone_common.sampling import Softmax
from chaperone_common.types import Choice, Signal

RISK_POWER = 0.6  # of the doubt
RISK_SCALE = 1.25


def measure(soft: Softmax, choice: Choice) -> Signal:
    """Measure the distribution a token was chosen from, before truncation.

    Entropy is in nats. At temperature 0 the distribution is the softmax at temperature 1.
    """
    weights = soft.weights
    mean = float(weights @ soft.scaled) / soft.total  # of the scaled logits, which are surprisals but for a constant
    spread = float((weights * soft.scaled) @ soft.scaled) / soft.total - mean * mean
    entropy = math.log(soft.total) - mean
    top = 1.0 / soft.total
    second = _second_weight(soft) / soft.total
    return Signal(
        entropy_nats=max(entropy, 0.0),
        top1_probability=top,
        margin=top - second,
        coupled_margin=choice.coupled_margin,
        risk=risk(entropy, choice.coupled_margin),
        varentropy=max(spread, 0.0),
    )


def doubt(entropy_nats: float, coupled_margin: float) -> float:
    """Return a score in [0, 0.5] that ranks tokens by how likely the cloud is to choose another one; no probability.

    If the cloud's log-scores differ from the draft's by logistic noise, the runner-up wins with probability
    `sigmoid(-coupled_margin)`; where the distribution is sharp (low entropy) there is little left to disagree on.
    """
    return (1.0 - math.exp(-max(entropy_nats, 0.0))) / (1.0 + math.exp(coupled_margin))


def risk(entropy_nats: float, coupled_margin: float) -> float:
    """Return the probability that the cloud chooses another token, without a calibrated gate for the pair of models.

    The power and the factor fit the default pair (`python -m benchmarks risk`); the factor differs from task to task.
    """
    return min(RISK_SCALE * float(doubt(entropy_nats, coupled_margin) ** RISK_POWER), 1.0)


_NODES, _SHARES = np.polynomial.legendre.leggauss(8)  # on (-1, 1)
_TEMPERATURES = [np.float32(1.0 + node) for node in _NODES]  # on (0, 2)


def disagreement(logits: NDArray[np.float32], token_id: int) -> float:
    """Return the probability, in [0, 1], that a token drawn at a random temperature is another one.

    The temperature is uniform on (0, 2], the token drawn from `softmax(logits / temperature)`; `logits` is [vocab].
    It is the uncertainty u of U-HLM (arXiv 2412.12687), which draws 20 tokens to estimate it. Here it is integrated by
    Gauss-Legendre quadrature at 8 temperatures: over texts of the default pair the error is 6e-5 in the mean, and 2e-3
    at most. It takes as many softmaxes, which no `Signal` may cost.
    """
    centred = logits - logits.max()
    weights = np.empty_like(centred)
    agrees = 0.0
    for temperature, share in zip(_TEMPERATURES, _SHARES, strict=True):
        np.exp(np.divide(centred, temperature, out=weights), out=weights)
        agrees += float(share) / 2.0 * float(weights[token_id] / weights.sum())
    return min(max(1.0 - agrees, 0.0), 1.0)


def cross_entropy(soft: Softmax, token_id: int) -> float:
    """Return `-log p(token_id)` in nats, under the distribution before truncation."""
    return max(math.log(soft.total) - float(soft.scaled[token_id]), 0.0)


def _second_weight(soft: Softmax) -> float:
    left, right = soft.weights[: soft.top], soft.weights[soft.top + 1 :]
    return max((float(part.max()) for part in (left, right) if len(part)), default=0.0)

"""Exact choices from the leading log-probabilities of a scoring service: a choice, or the proof that more are needed.

Services such as vLLM and SGLang return the K largest log-probabilities of a position. They are the logits up to a
constant, and the noise of every token is known without the model. So the best of the K tokens is the model's choice if
no other token can have a better score: the others have at most the K-th log-probability.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from chaperone_common.sampling import Float64s, Ids, noise
from chaperone_common.types import SamplingParams

_SLACK = 1e-6  # relative, for rounding by the service


def certified_choice(
    ids: Ids, log_probabilities: Float64s, vocabulary: int, params: SamplingParams, position: int
) -> int | None:
    """Return the token that `sampling.choose` chooses at a position, or None if that takes more log-probabilities.

    `ids` [K] are the likeliest tokens, likeliest first and the lower id first among equals. `log_probabilities` [K] are
    theirs at temperature 1, before any truncation. Raises ValueError unless both have the same length, at least 1, in
    this order.
    """
    if not len(ids) or len(ids) != len(log_probabilities) or (np.diff(log_probabilities) > 0).any():
        raise ValueError(f"log_probabilities: {len(log_probabilities)} for {len(ids)} ids; give them in falling order")
    if params.temperature == 0:
        return int(ids[0]) if _stands_alone(log_probabilities, vocabulary) else None
    scaled = (log_probabilities - log_probabilities[0]) / params.temperature
    kept = _kept(scaled, _rest(log_probabilities, vocabulary, params.temperature), vocabulary, params)
    if kept is None:
        return None
    uniforms = noise(params.seed, position, vocabulary)
    gains = -np.log(-np.log(uniforms))
    scores = np.where(kept, scaled + gains[ids], -np.inf)
    winner = int(scores.argmax())
    if _truncates(params) or len(ids) == vocabulary:
        return int(ids[winner])
    gains[ids] = -np.inf
    best_other = float(scaled[-1] + gains.max())
    return int(ids[winner]) if float(scores[winner]) > best_other + _SLACK * max(1.0, abs(best_other)) else None


def _truncates(params: SamplingParams) -> bool:
    return bool(params.top_k or params.top_p < 1 or params.min_p)


def _stands_alone(log_probabilities: Float64s, vocabulary: int) -> bool:
    """Return whether no token that is not among the K can be as likely as the first."""
    return len(log_probabilities) == vocabulary or bool(log_probabilities[-1] < log_probabilities[0])


def _rest(log_probabilities: Float64s, vocabulary: int, temperature: float) -> tuple[float, float]:
    """Return the least and the most that the weights of all other tokens can sum to, in weights of the first.

    At temperature 1 they sum to what the K lack. Each is at most the K-th weight w. With a = 1 / temperature, the sum
    of their a-th powers is extreme if they are all equal, or if as many as possible are w and all others 0.
    """
    others = vocabulary - len(log_probabilities)
    if not others:
        return 0.0, 0.0
    weights = np.exp(log_probabilities - log_probabilities[0])
    lacking = max(0.0, math.exp(-float(log_probabilities[0])) - float(weights.sum()))
    a = 1 / temperature
    equal = others * (lacking / others) ** a
    uneven = lacking * float(weights[-1]) ** (a - 1)
    return min(equal, uneven) * (1 - _SLACK), max(equal, uneven) * (1 + _SLACK) + _SLACK


def _kept(
    scaled: Float64s, rest: tuple[float, float], vocabulary: int, params: SamplingParams
) -> NDArray[np.bool_] | None:
    """Return which of the K tokens the filters keep, or None if they may keep others, or if it is not certain."""
    weights = np.exp(scaled)
    count, others = len(weights), vocabulary - len(weights)
    kept = np.ones(count, np.bool_)
    closed = not others  # no other token is kept
    least, most = (float(weights.sum()) + bound for bound in rest)
    if params.top_k:
        kept[params.top_k :] = False
        if params.top_k > count and others:
            return None
        # Equals at the cut: the lower ids are kept, and another token may have a lower id.
        if others and params.top_k == count and count > 1 and math.isclose(weights[-1], weights[-2], rel_tol=_SLACK):
            return None
        closed = True
        least = most = float(weights[kept].sum())
    if params.top_p < 1:
        before = np.cumsum(weights) - weights
        surely, perhaps = before < params.top_p * least * (1 - _SLACK), before < params.top_p * most * (1 + _SLACK)
        if (surely != perhaps).any():
            return None
        closed = closed or not surely[-1] or float(weights.sum()) >= params.top_p * most * (1 + _SLACK)
        kept &= surely
    if params.min_p:
        closed = closed or float(weights[-1]) < params.min_p * (1 - _SLACK)
        near = np.abs(weights / params.min_p - 1) < _SLACK
        if near.any():
            return None
        kept &= weights >= params.min_p
    kept[0] = True
    return kept if closed or not _truncates(params) else None

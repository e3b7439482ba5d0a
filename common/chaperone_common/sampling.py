"""Coupled choice: device and cloud draw with the same noise, so equal distributions choose equal tokens.

A model chooses `argmax_v(log p[v] - log(-log(u[v])))`, the Gumbel-max rule, with uniforms `u` that both ends
compute from `(seed, position, token_id)`. It is an exact sample of `p`, and two models that share the noise agree
with probability at least `(1 - TV) / (1 + TV)`: Daliri, Musco and Suresh, arXiv 2408.07978.

The noise is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). It is a function of
its arguments only. `proto/` has test vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chaperone_common.errors import ModelCorrupt
from chaperone_common.types import Choice, SamplingParams

Ids = NDArray[np.intp]
Float64s = NDArray[np.float64]

CHOICE_DOMAIN = 0  # other purposes use other domains
CHAIN_STREAM = 0
MAX_COUPLED_MARGIN = 30.0  # with a larger margin no other token can win, given float64 noise

# NumPy computes the row of a vocabulary of 152,000 ids in 0.6 ms. Single blocks are cheaper for fewer ids than this.
_ROW_IS_CHEAPER_FROM = 4096
# The coupled margin may ignore tokens with less weight than this; the likeliest has weight 1.
_RIVAL_WEIGHT = 1e-4
_CUTS = (_RIVAL_WEIGHT, 1e-6, 1e-9, 0.0)
# The noise of two tokens differs by less than 41; lighter than exp(-41 - MAX_COUPLED_MARGIN), a token is out of reach.
_OUT_OF_REACH = 1e-31
# Outside this range float32 overflows, and the choice no longer changes.
_TEMPERATURES = (1e-30, 1e30)


@dataclass(frozen=True, slots=True)
class Softmax:
    """`softmax(logits / temperature)`, kept as unnormalised weights; temperature 0 is measured at 1."""

    scaled: NDArray[np.float32]  # [vocab] (logits - max) / temperature
    weights: NDArray[np.float32]  # [vocab] exp(scaled), 1 at the likeliest token
    total: float  # sum of weights
    top: int  # the likeliest token, the lowest id among equals


def softmax(logits: NDArray[np.float32], temperature: float) -> Softmax:
    """Scale logits [vocab] and exponentiate them; cut off ids outside the tokenizer first.

    Raises ModelCorrupt if they are not numbers.
    """
    top = int(logits.argmax())
    if not math.isfinite(logits[top]):
        raise ModelCorrupt("model: its scores are not numbers; its files may be damaged: pull it again with --force")
    scaled = logits - logits[top]
    if temperature not in (0.0, 1.0):
        coldest, hottest = _TEMPERATURES
        scaled /= np.float32(min(max(temperature, coldest), hottest))
    weights = np.exp(scaled)
    return Softmax(scaled, weights, float(weights.sum()), top)


def choose(soft: Softmax, params: SamplingParams, position: int, *, stream: int = CHAIN_STREAM) -> Choice:
    """Choose the token at a position.

    The coupled margin is the best score minus the best score of any other token before truncation. At temperature 0 it
    is the logit gap. It measures how far the noise is from another choice.
    """
    if params.temperature == 0:
        return _won(soft.scaled, soft.top)
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        return _choose_from_all(soft, params.seed, position, stream)
    pool, kept = _truncate(soft, params)
    scores = _scores(soft.scaled[pool], _uniforms(params.seed, position, stream, pool, len(soft.weights)))
    winner = int(np.argmax(np.where(kept, scores, -np.inf)))
    if len(pool) == 1:
        return _won(soft.scaled, int(pool[winner]), MAX_COUPLED_MARGIN)
    return _won(scores, winner, ids=pool)


def warp(logits: NDArray[np.float32], params: SamplingParams) -> Float64s:
    """Return the distribution [vocab] that `choose` draws from: temperature, then top-k, top-p and min-p."""
    soft = softmax(logits, params.temperature)
    probabilities = np.zeros(len(logits), np.float64)
    if params.temperature == 0:
        probabilities[soft.top] = 1.0
        return probabilities
    pool, kept = _truncate(soft, params)
    weights = soft.weights[pool[kept]].astype(np.float64)
    probabilities[pool[kept]] = weights / weights.sum()
    return probabilities


def noise(seed: int, position: int, vocabulary: int, *, stream: int = CHAIN_STREAM) -> Float64s:
    """Return the uniforms u [vocab] in (0, 1) of one position."""
    # Arrays, not lists: NumPy would convert a list with a seed of 2**63 or more to floats.
    key = np.array([seed, 0], np.uint64)
    counter = np.array([0, position, stream, CHOICE_DOMAIN], np.uint64)
    generator = np.random.Philox(key=key, counter=counter)
    return _to_unit(np.asarray(generator.random_raw(vocabulary), np.uint64))


def noise_at(seed: int, position: int, ids: Ids, *, stream: int = CHAIN_STREAM) -> Float64s:
    """Return the uniforms of some ids only: `noise(seed, position, vocabulary)[ids]`."""
    counters = np.empty((4, len(ids)), np.uint64)
    counters[0] = 1 + ids // 4
    counters[1:] = np.array([[position], [stream], [CHOICE_DOMAIN]], np.uint64)
    words = philox4x64(counters, (seed, 0))
    return _to_unit(words[ids % 4, np.arange(len(ids))])


_MULTIPLIERS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], np.uint64)
_MULTIPLIERS_LOW = _MULTIPLIERS & np.uint64(0xFFFFFFFF)
_MULTIPLIERS_HIGH = _MULTIPLIERS >> np.uint64(32)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)


def philox4x64(counters: NDArray[np.uint64], key: tuple[int, int], rounds: int = 10) -> NDArray[np.uint64]:
    """Compute Philox4x64-10 of counters [4, n] with one key: words [4, n]."""
    even, odd = counters[0::2], counters[1::2]  # words (0, 2), which are multiplied, and (1, 3)
    keys = np.array([[key[0]], [key[1]]], np.uint64)
    weyl = np.array([[_WEYL[0]], [_WEYL[1]]], np.uint64)
    for _ in range(rounds):
        low = even * _MULTIPLIERS
        even, odd = _multiply_high(even)[::-1] ^ odd ^ keys, low[::-1]
        keys = keys + weyl
    return np.stack([even[0], odd[0], even[1], odd[1]])


def _multiply_high(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the upper 64 bits of words [2, n] times the two round multipliers, by halves of 32 bits."""
    low, high = words & _LOW_HALF, words >> _HALF
    low_low = low * _MULTIPLIERS_LOW >> _HALF
    middle = high * _MULTIPLIERS_LOW + low_low
    carry = (middle & _LOW_HALF) + low * _MULTIPLIERS_HIGH
    product: NDArray[np.uint64] = high * _MULTIPLIERS_HIGH + (middle >> _HALF) + (carry >> _HALF)
    return product


def _to_unit(raw: NDArray[np.uint64]) -> Float64s:
    return np.multiply((raw >> np.uint64(11)) + np.float64(0.5), 2.0**-53, dtype=np.float64)


def _uniforms(seed: int, position: int, stream: int, ids: Ids, vocabulary: int) -> Float64s:
    if len(ids) < _ROW_IS_CHEAPER_FROM:
        return noise_at(seed, position, ids, stream=stream)
    return noise(seed, position, vocabulary, stream=stream)[ids]


def _scores(scaled: NDArray[np.float32], uniforms: Float64s) -> Float64s:
    return np.asarray(scaled - np.log(-np.log(uniforms)), np.float64)


def _won(
    scores: NDArray[np.float32] | Float64s, winner: int, margin: float | None = None, *, ids: Ids | None = None
) -> Choice:
    """Return the choice of a winner, an index into `scores` and `ids`. A single token is its own runner-up.

    The default margin is the winner's score minus the best other score. It is 0 if a token that truncation removed
    has a better score.
    """
    second = _best_but(scores, winner)
    if margin is None:
        gap = float(scores[winner] - scores[second]) if second != winner else MAX_COUPLED_MARGIN
        margin = min(max(gap, 0.0), MAX_COUPLED_MARGIN)
    if ids is None:
        return Choice(winner, margin, second)
    return Choice(int(ids[winner]), margin, int(ids[second]))


def _best_but(values: NDArray[np.float32] | Float64s, index: int) -> int:
    """Return the index of the largest value except `values[index]`, or `index` if there is no other."""
    left, right = values[:index], values[index + 1 :]
    if not len(right):
        return int(left.argmax()) if len(left) else index
    best = index + 1 + int(right.argmax())
    return best if not len(left) or values[best] > left.max() else int(left.argmax())


def _choose_from_all(soft: Softmax, seed: int, position: int, stream: int) -> Choice:
    """Race over the whole vocabulary: the least time `-log(u) / weight` wins.

    Pruning is exact. Let t be the time of the slower of two tokens: only tokens with `-log(u) < t * weight` can be
    faster. Since `1 - u <= -log(u)`, one comparison without logarithms finds a superset that holds the best two.
    """
    uniforms = noise(seed, position, len(soft.weights), stream=stream)
    if len(uniforms) == 1:
        return Choice(soft.top, MAX_COUPLED_MARGIN, soft.top)
    pair = np.argpartition(soft.weights, -2)[-2:] if len(uniforms) < 64 else _two_heavy(soft)
    if soft.weights[pair].min() < _OUT_OF_REACH:
        return _won(soft.scaled, soft.top, MAX_COUPLED_MARGIN)
    slower = float((-np.log(uniforms[pair]) / soft.weights[pair]).max())
    ids = np.flatnonzero(1.0 - uniforms <= slower * soft.weights * (1 + 1e-6))
    scores = _scores(soft.scaled[ids], uniforms[ids])
    winner = int(scores.argmax())
    return _won(scores, winner, ids=ids)


def _two_heavy(soft: Softmax) -> Ids:
    """Return the likeliest token and the likeliest other one."""
    left = soft.weights[: soft.top]
    right = soft.weights[soft.top + 1 :]
    best_left = int(left.argmax()) if len(left) else -1
    best_right = soft.top + 1 + int(right.argmax()) if len(right) else -1
    if best_left < 0 or (best_right >= 0 and soft.weights[best_right] > soft.weights[best_left]):
        return np.array([soft.top, best_right])
    return np.array([soft.top, best_left])


def _truncate(soft: Softmax, params: SamplingParams) -> tuple[Ids, NDArray[np.bool_]]:
    """Return the ids that can matter, likeliest first, and which of them top-k, top-p and min-p keep.

    The result is exact: the cut is lowered until every id that the filters could keep is above it. So only a few ids of
    a large vocabulary are ever sorted.
    """
    cuts = iter(_CUTS)
    cut = next(cuts)
    ids = np.flatnonzero(soft.weights >= cut)
    while cut > 0 and not _holds_all(soft, ids, params, cut):
        cut = next(cuts)
        ids = np.flatnonzero(soft.weights >= cut)
    pool = ids[np.argsort(-soft.weights[ids], kind="stable")]  # equal weights: the lower id first
    weights = soft.weights[pool].astype(np.float64)
    kept = np.ones(len(pool), np.bool_)
    total = soft.total
    if params.top_k:
        kept[params.top_k :] = False
        total = float(weights[kept].sum())
    if params.top_p < 1:
        mass_before = np.cumsum(weights) - weights
        kept &= mass_before < params.top_p * total
    kept &= weights >= params.min_p * weights[0]
    kept[0] = True
    return pool, kept


def _holds_all(soft: Softmax, ids: Ids, params: SamplingParams, cut: float) -> bool:
    if params.top_k:
        return len(ids) >= min(params.top_k, len(soft.weights))
    if params.min_p >= cut > 0:
        return True
    return bool(params.top_p < 1 and soft.weights[ids].sum(dtype=np.float64) > params.top_p * soft.total * (1 + 1e-5))

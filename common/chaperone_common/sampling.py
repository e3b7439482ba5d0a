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
from typing import Protocol

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
_SLACK = 1 + 1e-6  # of comparisons, for rounding
_HEAVY = 1e-3  # of a weight: few tokens are above it
_LUCKY = 64  # expected tokens with so good a noise that even a small weight may win
# Outside this range float32 overflows, and the choice no longer changes.
_TEMPERATURES = (1e-30, 1e30)


class Distribution(Protocol):
    """The view that `choose` has of `softmax(logits / temperature)`, wherever the logits are.

    A token's scaled logit is `(logit - max) / temperature`, and its weight the exponential of that: 1 at the likeliest
    token. Temperature 0 is measured at 1.
    """

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""

    @property
    def total(self) -> float:
        """The sum of all weights."""

    @property
    def top(self) -> int:
        """The likeliest token, the lowest id among equals."""

    @property
    def second(self) -> int:
        """The likeliest other token, the lowest id among equals; `top` if there is no other."""

    def above(self, cut: float) -> tuple[Ids, NDArray[np.float32]]:
        """Return the ids of all tokens with a weight of at least `cut`, ascending, and their scaled logits."""

    def at(self, ids: Ids) -> NDArray[np.float32]:
        """Return the scaled logits of some tokens."""


@dataclass(frozen=True, slots=True)
class Softmax:
    """A `Distribution` with all scaled logits and weights at hand."""

    scaled: NDArray[np.float32]  # [vocab] (logits - max) / temperature
    weights: NDArray[np.float32]  # [vocab] exp(scaled), 1 at the likeliest token
    total: float  # sum of weights
    top: int  # the likeliest token, the lowest id among equals

    @property
    def vocabulary(self) -> int:
        return len(self.scaled)

    @property
    def second(self) -> int:
        return _best_but(self.scaled, self.top)

    def above(self, cut: float) -> tuple[Ids, NDArray[np.float32]]:
        ids = np.flatnonzero(self.weights >= cut)
        return ids, self.scaled[ids]

    def at(self, ids: Ids) -> NDArray[np.float32]:
        return self.scaled[ids]


def softmax(logits: NDArray[np.float32], temperature: float) -> Softmax:
    """Scale logits [vocab] and exponentiate them; cut off ids outside the tokenizer first.

    Raises ModelCorrupt if they are not numbers.
    """
    top = int(logits.argmax())
    if not math.isfinite(logits[top]):
        raise ModelCorrupt("model: its scores are not numbers; its files may be damaged: pull it again with --force")
    scaled = scale(logits, logits[top], temperature)
    weights = np.exp(scaled)
    return Softmax(scaled, weights, float(weights.sum()), top)


def scale(logits: NDArray[np.float32], most: np.float32, temperature: float) -> NDArray[np.float32]:
    """Return the scaled logits of some logits, of which all have the maximum `most`."""
    scaled = logits - most
    if temperature not in (0.0, 1.0):
        coldest, hottest = _TEMPERATURES
        scaled /= np.float32(min(max(temperature, coldest), hottest))
    return scaled


def choose(soft: Distribution, params: SamplingParams, position: int, *, stream: int = CHAIN_STREAM) -> Choice:
    """Choose the token at a position.

    The coupled margin is the best score minus the best score of any other token before truncation. At temperature 0 it
    is the logit gap. It measures how far the noise is from another choice.
    """
    if params.temperature == 0:
        return _top(soft)
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        return _choose_from_all(soft, params.seed, position, stream)
    pool, scaled, kept = _truncate(soft, params)
    scores = _scores(scaled, _uniforms(params.seed, position, stream, pool, soft.vocabulary))
    winner = int(np.argmax(np.where(kept, scores, -np.inf)))
    if len(pool) == 1:
        return _top(soft, MAX_COUPLED_MARGIN)
    return _won(scores, winner, pool)


def warp(logits: NDArray[np.float32], params: SamplingParams) -> Float64s:
    """Return the distribution [vocab] that `choose` draws from: temperature, then top-k, top-p and min-p."""
    soft = softmax(logits, params.temperature)
    probabilities = np.zeros(len(logits), np.float64)
    if params.temperature == 0:
        probabilities[soft.top] = 1.0
        return probabilities
    kept, _ = candidates(soft, params)
    weights = soft.weights[kept].astype(np.float64)
    probabilities[kept] = weights / weights.sum()
    return probabilities


def candidates(soft: Distribution, params: SamplingParams) -> tuple[Ids, NDArray[np.float32]]:
    """Return the tokens that top-k, top-p and min-p keep, likeliest first, and their scaled logits.

    The probabilities that `choose` draws with are proportional to the exponentials. The temperature must not be 0.
    """
    pool, scaled, kept = _truncate(soft, params)
    return pool[kept], scaled[kept]


def noise(
    seed: int, position: int, vocabulary: int, *, stream: int = CHAIN_STREAM, domain: int = CHOICE_DOMAIN
) -> Float64s:
    """Return the uniforms u [vocab] in (0, 1) of one position."""
    # Arrays, not lists: NumPy would convert a list with a seed of 2**63 or more to floats.
    key = np.array([seed, 0], np.uint64)
    counter = np.array([0, position, stream, domain], np.uint64)
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


def _top(soft: Distribution, margin: float | None = None) -> Choice:
    """Return the choice of the likeliest token; the default margin is the gap of the scaled logits."""
    second = soft.second
    if margin is None:
        margin = _limited(-float(soft.at(np.array([second]))[0])) if second != soft.top else MAX_COUPLED_MARGIN
    return Choice(soft.top, margin, second)


def _won(scores: Float64s, winner: int, ids: Ids) -> Choice:
    """Return the choice of a winner, an index into `scores` and `ids`. A single token is its own runner-up.

    The margin is the winner's score minus the best other score. It is 0 if a token that truncation removed has a better
    score.
    """
    second = _best_but(scores, winner)
    gap = float(scores[winner] - scores[second]) if second != winner else MAX_COUPLED_MARGIN
    return Choice(int(ids[winner]), _limited(gap), int(ids[second]))


def _limited(gap: float) -> float:
    return min(max(gap, 0.0), MAX_COUPLED_MARGIN)


def _best_but(values: NDArray[np.float32] | Float64s, index: int) -> int:
    """Return the index of the largest value except `values[index]`, or `index` if there is no other."""
    left, right = values[:index], values[index + 1 :]
    if not len(right):
        return int(left.argmax()) if len(left) else index
    best = index + 1 + int(right.argmax())
    return best if not len(left) or values[best] > left.max() else int(left.argmax())


def _choose_from_all(soft: Distribution, seed: int, position: int, stream: int) -> Choice:
    """Race over the whole vocabulary: the least time `-log(u) / weight` wins.

    Pruning is exact. Let t be the second-best time of any few tokens: only tokens with `-log(u) <= t * weight` can be
    among the best two. Since `1 - u <= -log(u)`, one comparison without logarithms finds a superset. It is made with
    the weights of heavy tokens, and with the largest weight that any other can have.
    """
    second = soft.second
    if second == soft.top:
        return Choice(soft.top, MAX_COUPLED_MARGIN, soft.top)
    runner_up_weight = float(np.exp(soft.at(np.array([second]))[0]))
    if runner_up_weight < _OUT_OF_REACH:
        return _top(soft, MAX_COUPLED_MARGIN)
    uniforms = noise(seed, position, soft.vocabulary, stream=stream)
    late = 1.0 - uniforms  # the time of a token of weight 1, at least
    few = _union(np.flatnonzero(late <= _LUCKY / soft.vocabulary), np.array([soft.top, second]))
    with np.errstate(divide="ignore", over="ignore"):  # a weight may be 0, or so small that its time is infinite
        t = float(np.partition(-np.log(uniforms[few]) / np.exp(soft.at(few).astype(np.float64)), 1)[1])
    heavy, _ = soft.above(_HEAVY)
    others = np.flatnonzero(late <= t * min(runner_up_weight, _HEAVY) * _SLACK)
    ids = _union(heavy, others, np.array([soft.top, second]))
    scaled = soft.at(ids)
    near = late[ids] <= t * np.exp(scaled) * _SLACK
    ids, scaled = ids[near], scaled[near]
    scores = _scores(scaled, uniforms[ids])
    return _won(scores, int(scores.argmax()), ids)


def _union(*parts: Ids) -> Ids:
    """Return the ids of all parts once, ascending. `np.unique` hashes them, which takes milliseconds."""
    ids = np.sort(np.concatenate(parts))
    return ids[np.diff(ids, prepend=-1) > 0]


def _truncate(soft: Distribution, params: SamplingParams) -> tuple[Ids, NDArray[np.float32], NDArray[np.bool_]]:
    """Return the ids that can matter, likeliest first, their scaled logits, and which top-k, top-p and min-p keep.

    The result is exact: the cut is lowered until every id that the filters could keep is above it. So only a few ids of
    a large vocabulary are ever sorted.
    """
    for cut in _CUTS:
        ids, scaled = soft.above(cut)
        weights = np.exp(scaled)
        if cut == 0 or _holds_all(soft, weights, params, cut):
            break
    order = np.argsort(-weights, kind="stable")  # equal weights: the lower id first
    weights = weights[order].astype(np.float64)
    kept = np.ones(len(order), np.bool_)
    total = soft.total
    if params.top_k:
        kept[params.top_k :] = False
        total = float(weights[kept].sum())
    if params.top_p < 1:
        mass_before = np.cumsum(weights) - weights
        kept &= mass_before < params.top_p * total
    kept &= weights >= params.min_p * weights[0]
    kept[0] = True
    return ids[order], scaled[order], kept


def _holds_all(soft: Distribution, weights: NDArray[np.float32], params: SamplingParams, cut: float) -> bool:
    if params.top_k:
        return len(weights) >= min(params.top_k, soft.vocabulary)
    if params.min_p >= cut > 0:
        return True
    return bool(params.top_p < 1 and weights.sum(dtype=np.float64) > params.top_p * soft.total * (1 + 1e-5))

"""The rule of speculative beams: ratio tests over joint probabilities. Pure.

A layer continues some beams by one token each. Its outcomes are pairs of a beam and a token, numbered in any order
that both ends share. The large model's law over them is `p_beam`, with the probability of the beam times that of the
token, normalised. The small model has drawn some outcomes, independently, from `q_beam`. The rule turns these draws
into W_L independent draws from `p_beam`, exactly, whatever `q_beam` is (Qin et al., arXiv 2409.16560, algorithm 1).

The paper's text prints the ratio of the test inverted, q / p'. With that, the law is not `p_beam`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]


class Chance(Protocol):
    """Random decisions, each independent of all others."""

    def stands(self, probability: float) -> bool:
        """Return True with this probability, which may be above 1."""

    def outcome(self, law: Float64s) -> int:
        """Return an outcome of a law."""


@dataclass(frozen=True, slots=True)
class LayerOutcome:
    """The beams of the large model after one layer: draws that stand, and its own draws in place of missing ones."""

    accepted: tuple[int, ...]  # numbers of the small model's draws, in their order
    drawn: tuple[int, ...]  # outcomes that the large model has drawn; empty if enough draws stand

    @property
    def whole(self) -> bool:
        """True if all beams are the small model's: the next layer can be verified."""
        return not self.drawn


def beam_law(log_weights: Float64s, conditionals: Sequence[Float64s]) -> Float64s:
    """Return the joint law over the outcomes of a layer, beam after beam.

    `log_weights` [beams] are log-probabilities of the beams, up to a constant. `conditionals` has the probability of
    each outcome of a beam, given the beam. The result is proportional to the product.
    """
    weights = np.exp(log_weights - log_weights.max())
    law = np.concatenate([weight * conditional for weight, conditional in zip(weights, conditionals, strict=True)])
    return np.asarray(law / law.sum(), np.float64)


def residual(p: Float64s, q: Float64s) -> Float64s:
    """Return norm(max(0, p - q)): the law of the next draw after one from q was rejected.

    If nothing is left, p equals q up to rounding, and a rejection had no probability: p is returned.
    """
    left = np.maximum(p - q, 0.0)
    total = left.sum()
    return left / total if total > 0 else p


def verify_layer(p_beam: Float64s, q_beam: Float64s, draws: Sequence[int], width: int, chance: Chance) -> LayerOutcome:
    """Return W_L = `width` independent draws from `p_beam` [outcomes], most of them from the small model's draws.

    `draws` are outcomes, drawn independently from `q_beam`. Each stands with probability min(1, p'/q). p' is `p_beam`
    at first and after each draw that stands; after a rejection it is the residual. If too few stand, the large model
    draws one outcome from p' and the others from `p_beam`. Raises ValueError for a width below 1.
    """
    if width < 1:
        raise ValueError(f"width: {width}; at least one beam is needed")
    accepted: list[int] = []
    p_left = p_beam
    for number, outcome in enumerate(draws):
        if len(accepted) == width:
            break
        if chance.stands(p_left[outcome] / q_beam[outcome]):
            accepted.append(number)
            p_left = p_beam
        else:
            p_left = residual(p_left, q_beam)
    laws = [p_left, *[p_beam] * width][: width - len(accepted)]
    return LayerOutcome(tuple(accepted), tuple(chance.outcome(law) for law in laws))

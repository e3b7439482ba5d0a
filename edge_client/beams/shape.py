"""The shape of the next forest: the width and depth with the most layers for their time. Pure.

A round of depth gamma is drafted, sent, and verified; nothing overlaps. A layer stands whole if at least W_L of its W_S
draws are accepted. The layer after the last one that stands is drawn by the cloud, so a round gains at least one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import comb
from typing import NamedTuple

from chaperone_common.planning.costs import Costs
from edge_client.planner.learning import Share

_PRIOR = 0.7  # of a draw's acceptance: between prose and code (an assumption)
# Rounds without a draft teach nothing about drafts. So one layer is drafted after this number of layers without any.
_LAYERS_UNTRIED = 64


class Shape(NamedTuple):
    """The forest to draft; depth 0: let the cloud draw alone."""

    width: int  # W_S
    depth: int  # gamma


class Limits(NamedTuple):
    """The bounds of a forest."""

    width: int
    depth: int
    texts: int  # that the cloud reads in one forest, the running beams included


@dataclass(slots=True)
class Acceptance:
    """The chance that a tested draw is accepted, learned from verdicts."""

    _share: Share = field(default_factory=lambda: Share(_PRIOR, weight=8.0, memory=120.0))

    @property
    def value(self) -> float:
        """The chance."""
        return self._share.value

    def judged(self, accepted: int, tested: int) -> None:
        """Learn from a verdict."""
        if tested:
            self._share.add(accepted, tested)

    def of_layer(self, num_beams: int, width: int) -> float:
        """Return the chance that a layer of `width` draws stands whole, if draws are independent."""
        a = min(max(self.value, 0.0), 1.0)
        return sum(comb(width, k) * a**k * (1 - a) ** (width - k) for k in range(num_beams, width + 1))


def layers_gained(stands: float, depth: int) -> float:
    """Return the expected layers of a round: those that stand whole, and one more."""
    return sum(stands**layer for layer in range(depth + 1))


def round_ms(costs: Costs, num_beams: int, shape: Shape) -> float:
    """Return the time of a round: the forest, the link, and the verification.

    The first layer needs the running beams as rows, and each further one the draws of the layer before.
    """
    rows = [num_beams] + [shape.width] * (shape.depth - 1) if shape.depth else []
    drafting = sum(costs.draft_ms + costs.row_ms * (count - 1) for count in rows)
    return drafting + costs.rtt_ms + costs.read_ms(num_beams + shape.width * shape.depth)


def best_shape(
    costs: Costs, acceptance: Acceptance, num_beams: int, layers_left: int, limits: Limits, width: int | None = None
) -> Shape:
    """Return the shape with the most layers for its time; `width` allows that width alone.

    The cloud alone gains a layer in the time of a forward with `num_beams` texts, and the link costs it nothing while
    it goes on. It is chosen where no forest is faster.
    """
    most = min(limits.depth, layers_left - 1)
    rates = {Shape(0, 0): 1 / costs.read_ms(num_beams)}
    widths = range(num_beams, limits.width + 1) if width is None else (width,)
    for tried in widths:
        stands = acceptance.of_layer(num_beams, tried)
        for depth in range(1, most + 1):
            shape = Shape(tried, depth)
            if num_beams + tried * depth <= limits.texts:
                rates[shape] = layers_gained(stands, depth) / round_ms(costs, num_beams, shape)
    return max(rates, key=lambda shape: (rates[shape], -shape.width * shape.depth))


@dataclass(slots=True)
class ForestPlanner:
    """Chooses shapes for one generation after the other."""

    acceptance: Acceptance = field(default_factory=Acceptance)
    _untried: int = 0  # layers since the last forest

    def shape(self, costs: Costs, num_beams: int, layers_left: int, limits: Limits, width: int | None = None) -> Shape:
        """Return the shape of the next forest; `width` is W_S if the request fixes it."""
        shape = best_shape(costs, self.acceptance, num_beams, layers_left, limits, width)
        if not shape.depth and self._untried >= _LAYERS_UNTRIED and layers_left > 1:
            return Shape(width or num_beams, 1)
        return shape

    def layers_alone(self, layers_left: int) -> int:
        """Return how many layers the cloud may draw before a forest is tried again."""
        return min(layers_left, max(1, _LAYERS_UNTRIED - self._untried))

    def judged(self, shape: Shape, layers: int, accepted: int, tested: int) -> None:
        """Learn from the verdict on a forest of this shape, which has gained a number of layers."""
        self._untried = 0 if shape.depth else self._untried + layers
        self.acceptance.judged(accepted, tested)

"""The shape of the next forest: the width and depth with the most layers for their time. Pure.

A round of depth gamma is drafted, sent, and verified; nothing overlaps. A layer stands whole if at least W_L of its W_S
draws are accepted. The layer after the last one that stands is drawn by the cloud, so a round gains at least one.

Draws are often the same text, and a text is read once by each model. So two things are learned: the chance that a layer
of each width stands, and how many different texts its draws are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import comb
from typing import NamedTuple

from chaperone_common.planning.costs import Costs
from edge_client.planner import Decision, DraftForest, HandOver
from edge_client.planner.learning import Share

_PRIOR = 0.7  # of a draw's acceptance: between prose and code (an assumption)
_UNLIKE = 0.5  # of further draws, those that are other texts than the first (an assumption)
# Rounds without a draft teach nothing about drafts. So one layer is drafted after this number of layers without any.
_LAYERS_UNTRIED = 64


class Shape(NamedTuple):
    """The width W_S and depth gamma of a forest; depth 0: the cloud draws alone."""

    width: int
    depth: int


class Limits(NamedTuple):
    """The bounds of a forest."""

    width: int
    depth: int
    texts: int  # that the cloud reads in one forest, the running beams included


class Situation(NamedTuple):
    """The beams when the next forest is planned."""

    running: int  # different running texts
    layers_left: int
    limits: Limits
    width: int | None = None  # W_S, if the request fixes it


@dataclass(slots=True)
class Learned:
    """The fate of drafts, learned from verdicts, for one number of beams W_L."""

    num_beams: int
    accepted: Share = field(default_factory=lambda: Share(_PRIOR, weight=8.0, memory=120.0))  # of tested draws
    unlike: Share = field(default_factory=lambda: Share(_UNLIKE, weight=4.0, memory=80.0))  # of further draws
    _stood: dict[int, Share] = field(default_factory=lambda: defaultdict(lambda: Share(0.0, weight=0.0, memory=40.0)))
    _trials: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    def judged(self, shape: Shape, *, layers: int, accepted: int, tested: int, texts: int) -> None:
        """Learn from a verdict: `layers` gained, and the different texts of all layers of the forest."""
        if not shape.depth:
            return
        if tested:
            self.accepted.add(accepted, tested)
        if shape.width > 1:
            self.unlike.add(max(texts - shape.depth, 0) / (shape.width - 1), shape.depth)
        stood = min(layers - 1, shape.depth)
        tried = min(stood + 1, shape.depth)
        self._stood[shape.width].add(stood, tried)
        self._trials[shape.width] = min(self._trials[shape.width] + tried, 40.0)

    def stands(self, width: int) -> float:
        """Return the chance that a layer of this width stands: a posterior mean.

        Its prior, with the weight of four layers, takes draws as independent.
        """
        a = min(max(self.accepted.value, 0.0), 1.0)
        needed = range(self.num_beams, width + 1)
        prior = sum(comb(width, k) * a**k * (1 - a) ** (width - k) for k in needed)
        trials = self._trials[width]
        seen = self._stood[width].value if trials else 0.0
        return (4.0 * prior + trials * seen) / (4.0 + trials)

    def texts(self, draws: int) -> float:
        """Return how many different texts some draws are."""
        return 1.0 + (draws - 1) * min(max(self.unlike.value, 0.0), 1.0)


def layers_gained(stands: float, depth: int) -> float:
    """Return the expected layers of a round: those that stand whole, and one more."""
    return sum(stands**layer for layer in range(depth + 1))


def round_ms(costs: Costs, running: float, texts: float, depth: int) -> float:
    """Return the time of a round: the forest, the link, and the verification.

    The first layer reads the running texts on the device, and each further one the texts of the layer before.
    """
    rows = [running] + [texts] * (depth - 1) if depth else []
    drafting = sum(costs.draft_ms + costs.row_ms * (count - 1) for count in rows)
    return drafting + costs.rtt_ms + costs.read_ms(running + texts * depth)


@dataclass(slots=True)
class ForestPlanner:
    """Chooses shapes for one generation after the other; they share a number of beams, and search or sample alike."""

    learned: Learned
    _untried: int = 0  # layers since the last forest

    def decide(self, costs: Costs, situation: Situation) -> Decision:
        """Return the next forest to draft, or the layers that the cloud draws alone where no forest is faster.

        The cloud alone gains a layer in the time of a forward with all beams, and the link costs it nothing while it
        goes on.
        """
        learned, left = self.learned, situation.layers_left
        alone = 1e3 / costs.read_ms(learned.texts(learned.num_beams))
        rates = {shape: self._rate(costs, situation, shape) for shape in self._shapes(situation)}
        best = max(rates, key=lambda shape: (rates[shape], -shape.width * shape.depth), default=Shape(0, 0))
        figures = {
            "running": situation.running,
            "accepted": learned.accepted.value,
            "stands": learned.stands(best.width) if best.depth else 0.0,
            "texts": learned.texts(best.width) if best.depth else 0.0,
            "layers_per_s": rates.get(best, 0.0),
            "alone_per_s": alone,
        }
        if best.depth and rates[best] > alone:
            return Decision(DraftForest(best.width, best.depth), "the most layers for their time", figures)
        if best.depth and self._untried >= _LAYERS_UNTRIED:
            return Decision(DraftForest(best.width, 1), "no forest was tried for long", figures)
        layers = min(left, max(1, _LAYERS_UNTRIED - self._untried)) if best.depth else left
        return Decision(HandOver(layers), "no forest is faster than the cloud alone", figures)

    def judged(self, shape: Shape, *, layers: int, accepted: int, tested: int, texts: int) -> None:
        """Learn from the verdict on a forest, as `Learned.judged`."""
        self._untried = 0 if shape.depth else self._untried + layers
        self.learned.judged(shape, layers=layers, accepted=accepted, tested=tested, texts=texts)

    def _shapes(self, situation: Situation) -> Iterator[Shape]:
        limits, width = situation.limits, situation.width
        for tried in range(self.learned.num_beams, limits.width + 1) if width is None else (width,):
            for depth in range(1, min(limits.depth, situation.layers_left - 1) + 1):
                if situation.running + tried * depth <= limits.texts:
                    yield Shape(tried, depth)

    def _rate(self, costs: Costs, situation: Situation, shape: Shape) -> float:
        """Return the layers per second of rounds of a shape."""
        gained = layers_gained(self.learned.stands(shape.width), shape.depth)
        texts = self.learned.texts(shape.width)
        return 1e3 * gained / round_ms(costs, situation.running, texts, shape.depth)

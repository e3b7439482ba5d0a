"""The shape of the next forest: the width and depth with the most layers for their time. Pure.

A round of depth gamma is drafted, sent, and verified; nothing overlaps. A layer stands whole if at least W_L of its W_S
draws are accepted. The layer after the last one that stands is drawn by the cloud, so a round gains at least one.

A narrower layer would have had the first draws of a wider one. So each layer teaches about all widths up to its own:
whether it would have stood with them, and how many different texts their draws are. Draws are often the same text, and
a text is read once by each model. Only draws that are *live* count: those that continue a text that has survived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, comb
from typing import NamedTuple

from chaperone_common.beams.device import Gain
from chaperone_common.ranges import MAX_BEAM_WIDTH
from edge_client.beams.costs import ForestCosts
from edge_client.planner import Decision, DraftForest, HandOver
from edge_client.planner.learning import Share

_PRIOR = 0.7  # of a draw's acceptance: between prose and code (an assumption)
_SURVIVING = 2.0  # draws after a beam that has survived, for each after one that has not (an assumption)
_UNLIKE = 0.5  # of further draws, those that are other texts than the ones before (an assumption)
_WEIGHT = 4.0  # of a prior, in layers
_MEMORY = 80.0  # layers that count
# Where the cloud alone seems faster, forests are tried again now and then: they may lose this share of the time, and
# more while few layers of them are known.
_TRIALS, _FIRST_TRIALS = 0.01, 0.02


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
    stops: bool = False  # the device reads each layer before the cloud draws the next


def _counts() -> list[float]:
    return [0.0] * (MAX_BEAM_WIDTH + 1)


@dataclass(slots=True)
class Learned:
    """The fate of drafts, learned from verdicts, for one number of beams W_L."""

    num_beams: int
    least: int = 0  # draws that must stand, if fewer than all beams are enough: W_L is dynamic
    accepted: Share = field(default_factory=lambda: Share(_PRIOR, weight=8.0, memory=120.0))  # of tested draws
    running: Share = field(init=False)  # different texts that grow
    # By a number of live draws n: layers that did not stand with fewer, and those of them that stood with n.
    _asked: list[float] = field(default_factory=_counts)
    _stood: list[float] = field(default_factory=_counts)
    # Of layers after the first: draws that are live, and draws that are not, the latter as if as many draws had been
    # rejected in the layer before as had stood.
    _live: float = 0.0
    _dead: float = 0.0
    # By width: such layers that were tested, and those that stood.
    _tested: list[float] = field(default_factory=_counts)
    _whole: list[float] = field(default_factory=_counts)
    # By n: layers with at least n draws, and those whose draw n is another text than all before.
    _drawn: list[float] = field(default_factory=_counts)
    _unlike: list[float] = field(default_factory=_counts)

    def __post_init__(self) -> None:
        self.running = Share(float(self.num_beams), weight=2.0, memory=40.0)

    def judged(self, gain: Gain, layers: Sequence[Sequence[int]], *, accepted: int, tested: int, running: int) -> None:
        """Learn from a verdict on a forest that continued `running` texts: `layers` are the texts of its draws."""
        self.running.add(running)
        if tested:
            self.accepted.add(accepted, tested)
        for draws in layers:
            self._fade()
            for place, text in enumerate(draws, start=1):
                self._drawn[place] += 1
                self._unlike[place] += text not in draws[: place - 1]
        for number, live in enumerate(gain.live):
            needed = gain.needed[number] if number < len(gain.needed) else None
            for place in range(1, (needed or live) + 1):
                self._asked[place] += 1
            if needed is not None:
                self._stood[needed] += 1
            if number:
                self._judged_deeper(len(layers[number]), live, len(layers[number - 1]), stood=needed is not None)

    def _judged_deeper(self, width: int, live: int, before: int, *, stood: bool) -> None:
        """Learn from a layer after one of `before` draws."""
        self._tested[width] += 1
        self._whole[width] += stood
        if before > self.num_beams:
            self._live += live
            self._dead += (width - live) * self.num_beams / (before - self.num_beams)

    @property
    def layers_known(self) -> float:
        """Layers that count."""
        return max(self._asked)

    def stands(self) -> list[float]:
        """Return the chance that a layer stands, by its live draws: entry n is that of a layer with n of them."""
        a = min(max(self.accepted.value, 0.01), 0.99)
        least = self.least or self.num_beams
        # Draws often stand or fall together. So one more draw helps less than an independent one would. Where none was
        # tried, it helps less by the same share as the draw before it.
        share = 1.0
        found, falls = [0.0], 1.0
        for place in range(1, MAX_BEAM_WIDTH + 1):
            independent = _stands_with(place, least, a)
            chance = (_WEIGHT * share * independent + self._stood[place]) / (_WEIGHT + self._asked[place])
            share = min(chance / independent, 1.0) if independent else share
            falls *= 1.0 - chance
            found.append(1.0 - falls)
        return found

    def stands_deeper(self, first: Sequence[float]) -> list[float]:
        """Return the chance that a layer stands after another one, by the width of both; `first` is from `stands`.

        A layer that stands keeps W_L of its W_S draws. Those after other texts are lost, and a wider forest has more of
        them.
        """
        found = []
        odds = (_WEIGHT * _SURVIVING + self._live) / (_WEIGHT + self._dead)
        for width in range(MAX_BEAM_WIDTH + 1):
            others = max(width - self.num_beams, 0)
            live = odds * self.num_beams / (odds * self.num_beams + others)
            expected = sum(chance * first[draws] for draws, chance in enumerate(_binomial(width, live)))
            found.append((2 * _WEIGHT * expected + self._whole[width]) / (2 * _WEIGHT + self._tested[width]))
        return found

    def texts(self) -> list[float]:
        """Return how many different texts the draws of a layer are: entry n is that of n draws."""
        found, share = [0.0, 1.0], _UNLIKE
        for place in range(2, MAX_BEAM_WIDTH + 1):
            share = (_WEIGHT * share + self._unlike[place]) / (_WEIGHT + self._drawn[place])
            found.append(found[-1] + share)
        return found

    def _fade(self) -> None:
        kept = 1 - 1 / _MEMORY
        for counts in (self._asked, self._stood, self._tested, self._whole, self._drawn, self._unlike):
            counts[:] = [count * kept for count in counts]
        self._live *= kept
        self._dead *= kept


def _binomial(trials: int, chance: float) -> list[float]:
    return [comb(trials, hits) * chance**hits * (1 - chance) ** (trials - hits) for hits in range(trials + 1)]


def _stands_with(draws: int, least: int, a: float) -> float:
    """Return the chance that a layer stands with this number of independent draws, if it does not with fewer."""
    if draws < least:
        return 0.0
    before = sum(comb(draws - 1, k) * a**k * (1 - a) ** (draws - 1 - k) for k in range(least))
    with_this = comb(draws - 1, least - 1) * a**least * (1 - a) ** (draws - least)
    return with_this / before


def layers_gained(first: float, deeper: float, depth: int) -> float:
    """Return the expected layers of a round: those that stand whole, and one more."""
    return 1 + sum(first * deeper**layer for layer in range(depth))


def round_ms(costs: ForestCosts, running: float, texts: float, depth: int, whole: float) -> float:
    """Return the time of a round: the forest, the link, and the verification.

    The first layer reads the running texts on the device, and each further one the texts of the layer before. After a
    forest that stands, as it does with the chance `whole`, the running texts have two tokens that the device has not
    read.
    """
    drafting = costs.drafting_ms(running) * (1 + whole) + costs.drafting_ms(texts) * (depth - 1)
    return drafting + costs.rtt_ms + costs.reading_ms(running + texts * depth)


@dataclass(slots=True)
class ForestPlanner:
    """Chooses shapes for one generation after the other; they share a number of beams, and search or sample alike."""

    learned: Learned
    _alone_ms: float = 0.0  # that the cloud has drawn alone since the last forest

    def decide(self, costs: ForestCosts, situation: Situation) -> Decision:
        """Return the next forest to draft, or the layers that the cloud draws alone where no forest is faster.

        The cloud alone gains a layer in the time of a forward with all beams, and the link costs it nothing while it
        goes on.
        """
        learned, left = self.learned, situation.layers_left
        layer_ms = self._layer_ms(costs, situation)
        stands, texts = learned.stands(), learned.texts()
        deeper = learned.stands_deeper(stands)
        gained = {
            Shape(width, depth): layers_gained(stands[width], deeper[width], depth)
            for width, depth in self._shapes(situation)
        }
        rates = {
            Shape(width, depth): 1e3
            * layers
            / round_ms(costs, situation.running, texts[width], depth, stands[width] * deeper[width] ** (depth - 1))
            for (width, depth), layers in gained.items()
        }
        best = max(rates, key=lambda shape: (rates[shape], -shape.width * shape.depth), default=Shape(0, 0))
        figures = {
            "running": situation.running,
            "accepted": learned.accepted.value,
            "stands": stands[best.width],
            "texts": texts[best.width],
            "layers_per_s": rates.get(best, 0.0),
            "alone_per_s": 1e3 / layer_ms,
        }
        if not best.depth:
            return Decision(HandOver(left), "the text is almost full", figures)
        if not costs.known and stands[best.width]:  # a small forest measures all costs
            narrow = min(rates, key=lambda shape: (shape.width, abs(shape.depth - 2)))
            return Decision(DraftForest(*narrow), "no cost is known yet", figures)
        if rates[best] > 1e3 / layer_ms:
            return Decision(DraftForest(*best), "the most layers for their time", figures)
        if not stands[best.width]:  # it is fixed below the number of beams
            return Decision(HandOver(left), "no forest of this width can stand", figures)
        # The cloud stands still until it is asked to go on.
        loss_ms = gained[best] * (1e3 / rates[best] - layer_ms) + (0.0 if situation.stops else costs.rtt_ms)
        share = _TRIALS + _FIRST_TRIALS * _WEIGHT / (_WEIGHT + learned.layers_known)
        due = ceil((loss_ms / share - self._alone_ms) / layer_ms)
        if due <= 0:
            return Decision(DraftForest(*best), "no forest was tried for long", figures)
        return Decision(HandOver(min(left, due)), "no forest is faster than the cloud alone", figures)

    def judged(self, gain: Gain, layers: Sequence[Sequence[int]], *, accepted: int, tested: int, running: int) -> None:
        """Learn from the verdict on a forest, as `Learned.judged`."""
        self._alone_ms = 0.0
        self.learned.judged(gain, layers, accepted=accepted, tested=tested, running=running)

    def drawn_alone(self, elapsed_ms: float, running: int) -> None:
        """Note a layer that the cloud has drawn alone, after `running` different texts."""
        self._alone_ms += elapsed_ms
        self.learned.running.add(running)

    def _shapes(self, situation: Situation) -> Iterator[Shape]:
        limits, width = situation.limits, situation.width
        for tried in range(self.learned.num_beams, limits.width + 1) if width is None else (width,):
            for depth in range(1, min(limits.depth, situation.layers_left - 1) + 1):
                if situation.running + tried * depth <= limits.texts:
                    yield Shape(tried, depth)

    def _layer_ms(self, costs: ForestCosts, situation: Situation) -> float:
        """Return the time of a layer that the cloud draws alone."""
        running = max(self.learned.running.value, situation.running)
        return costs.reading_ms(running) + (costs.rtt_ms if situation.stops else costs.gap_ms)

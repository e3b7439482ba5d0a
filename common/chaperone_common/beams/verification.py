"""The large model's answer to a forest: which drafted beams stand, and its own in place of others. Pure.

The large model reports a few numbers for each node: probabilities of the tokens in the node's row, and the mass of all
other tokens, with tokens drawn from these. So no logits leave the model. The outcomes of a layer are, for each
surviving beam, the tokens of its row and then "another token".
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import numpy as np

from chaperone_common.beams.forest import Numbering
from chaperone_common.beams.rule import Chance, Float64s, beam_law, verify_layer
from chaperone_common.beams.scoring import NodeScores, Scored
from chaperone_common.beams.width import Width


class Beam(NamedTuple):
    """A beam of the large model: the text of a node, and perhaps a token after it that is no node."""

    node: int
    token_id: int | None  # drawn by the large model; None: the text is the node's own
    log_p: float  # joint log-probability, after temperature and truncation
    logprob: float  # sum of the model's own log-probabilities


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """The beams after a round."""

    running: tuple[Beam, ...]
    finished: tuple[Beam, ...]  # their last token ends the text
    live: tuple[int, ...]  # of each drafted layer that was tested: its draws that continue a beam
    needed: tuple[int, ...]  # of those that stood whole: such draws up to the last one that stood
    accepted: int  # draws that stood
    tested: int  # draws that were tested: the rest of a layer is not, once enough stand


def all_ended(running: Sequence[Beam], finished: Sequence[Beam]) -> bool:
    """Return True if no beam runs on."""
    return not running


def verify_forest(
    numbering: Numbering,
    beams: Sequence[Beam],
    scores: Sequence[NodeScores],
    width: Width,
    chance: Callable[[int], Chance],
    final: Callable[[Sequence[Beam], Sequence[Beam]], bool] = all_ended,
) -> RoundOutcome:
    """Verify the layers of a forest in order, until one is not whole, or the generation ends.

    `beams` are the input beams, by slot. `scores` are by node. If all layers stand, one further layer is drawn.
    `chance` returns the decisions of a layer, from 0. `final` takes the running beams after a layer, and those that the
    round has finished so far, and returns True if the generation ends there: no text of a further layer may count.
    """
    weights = _draft_weights(numbering, beams)
    running = [*beams]
    finished: list[Beam] = []
    live: list[int] = []
    needed: list[int] = []
    accepted = tested = 0
    for depth in range(numbering.depth + 1):
        layer = _Layer.of(numbering, depth, running, scores, weights)
        wanted = width.width(layer.p_beam, layer.q_beam, len(layer.slots)) if layer.slots else width.most
        outcome = verify_layer(layer.p_beam, layer.q_beam, layer.outcomes, wanted, chance(depth))
        tested += outcome.accepted[-1] + 1 if outcome.whole else len(layer.slots)
        accepted += len(outcome.accepted)
        standing = (layer.drafted(numbering, depth, number) for number in outcome.accepted)
        found = [*standing, *layer.drawn(outcome.drawn)]
        finished += [beam for beam in found if has_ended(numbering, beam)]
        running = [beam for beam in found if not has_ended(numbering, beam)]
        if depth < numbering.depth:
            live.append(len(layer.slots))
            needed += [outcome.accepted[-1] + 1] if outcome.whole else []
        if not outcome.whole or final(running, finished):
            break
    return RoundOutcome(tuple(running), tuple(finished), tuple(live), tuple(needed), accepted, tested)


def _draft_weights(numbering: Numbering, beams: Sequence[Beam]) -> list[float]:
    """Return the log-weight of each node in the small model's draws.

    That is the large model's log-probability of the input beam, and then the small model's.
    """
    log_p = {beam.node: beam.log_p for beam in beams}
    return [log_p[numbering.path(node)[0]] + log_q for node, log_q in enumerate(numbering.log_q)]


def after(beam: Beam, token: Scored) -> Beam:
    """Return a beam with one more token, which no draft needs to have."""
    return Beam(beam.node, token.token_id, beam.log_p + token.log_p, beam.logprob + token.logprob)


def has_ended(numbering: Numbering, beam: Beam) -> bool:
    """Return whether a beam's last token ends its text."""
    if beam.token_id is None:
        return numbering.ends(beam.node)
    return beam.token_id in numbering.eos_token_ids


@dataclass(frozen=True, slots=True)
class _Layer:
    """The laws of one layer over the outcomes of the surviving texts, and the draws that continue these.

    Beams of one text have the same outcomes, so a text counts as often as it survives. A draw after a rejected slot is
    a draw after that slot's text, independent of the rejection. So it counts if the text survives in another slot.
    """

    beams: tuple[Beam, ...]  # one of each text
    scores: tuple[NodeScores, ...]  # of the beams
    first: tuple[int, ...]  # the first outcome of each beam
    p_beam: Float64s  # [outcomes]
    q_beam: Float64s  # [outcomes]; zeros after the last layer
    slots: tuple[int, ...]  # of the draws
    outcomes: tuple[int, ...]  # of the draws

    @classmethod
    def of(
        cls,
        numbering: Numbering,
        depth: int,
        running: Sequence[Beam],
        scores: Sequence[NodeScores],
        weights: Sequence[float],
    ) -> _Layer:
        """Return the layer that continues the surviving beams after `depth` layers."""
        surviving, slots = Counter(beam.node for beam in running), numbering.slots[depth]
        beams = tuple({beam.node: beam for beam in running}.values())
        of_beams = tuple(scores[beam.node] for beam in beams)
        laws = [np.array([*(np.exp(token.log_p) for token in found.listed), found.other_mass]) for found in of_beams]
        first = np.cumsum([0, *map(len, laws)]).tolist()
        p_beam = beam_law(np.array([beam.log_p + log(surviving[beam.node]) for beam in beams]), laws)
        if depth == numbering.depth:
            return cls(beams, of_beams, tuple(first[:-1]), p_beam, np.zeros_like(p_beam), (), ())
        drawn_from = [np.append(numbering.rows[beam.node].law(), 0.0) for beam in beams]
        drafted = Counter(slots)
        q_beam = beam_law(np.array([weights[beam.node] + log(drafted[beam.node]) for beam in beams]), drawn_from)
        number_of = {beam.node: number for number, beam in enumerate(beams)}
        drawn = zip(numbering.parents[depth + 1], numbering.slots[depth + 1], strict=True)
        outcomes = {
            slot: first[number_of[slots[parent]]] + numbering.places[node]
            for slot, (parent, node) in enumerate(drawn)
            if slots[parent] in number_of
        }
        return cls(beams, of_beams, tuple(first[:-1]), p_beam, q_beam, tuple(outcomes.keys()), tuple(outcomes.values()))

    def drafted(self, numbering: Numbering, depth: int, number: int) -> Beam:
        """Return the beam of a draw that stands."""
        beam, place = self._find(self.outcomes[number])
        node = numbering.slots[depth + 1][self.slots[number]]
        return after(self.beams[beam], self.scores[beam].listed[place])._replace(node=node, token_id=None)

    def drawn(self, outcomes: Sequence[int]) -> list[Beam]:
        """Return the beams of the large model's own draws."""
        used: Counter[int] = Counter()  # of the other tokens of a node
        found = []
        for outcome in outcomes:
            number, place = self._find(outcome)
            beam, scores = self.beams[number], self.scores[number]
            if place == len(scores.listed):
                token = scores.others[used[beam.node]]
                used[beam.node] += 1
            else:
                token = scores.listed[place]
            found.append(after(beam, token))
        return found

    def _find(self, outcome: int) -> tuple[int, int]:
        """Return the beam of an outcome, and its place among the beam's outcomes."""
        number = bisect_right(self.first, outcome) - 1
        return number, outcome - self.first[number]

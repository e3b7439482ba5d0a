"""Beam search across the link: the same forests, and the likeliest beams in place of draws. Pure.

Nothing is random here. A layer stands if the large model's best beams are all in the forest. Otherwise the round ends
with its best beams, whether they were drafted or not. So the beams are those of beam search by the large model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import itemgetter

from chaperone_common.beams.forest import Numbering
from chaperone_common.beams.scoring import NodeScores
from chaperone_common.beams.verification import Beam, RoundOutcome, after, all_ended, has_ended


def search_forest(
    numbering: Numbering,
    beams: Sequence[Beam],
    scores: Sequence[NodeScores],
    width: int,
    final: Callable[[Sequence[Beam], Sequence[Beam]], bool] = all_ended,
    *,
    kept: int | None = None,
) -> RoundOutcome:
    """Return the beams of beam search after a round.

    As in Hugging Face's, the continuations of a layer are ranked by joint log-probability, of the model itself. Those
    among the best W_L = `width` that end a text are finished, and the best W_L of the others run on. Equal beams: the
    earlier parent, the lower id. `scores` has the likeliest other tokens of each node: as many as W_L and the ids of
    end-of-text together.

    If stop strings can end texts, only the device can see the end of one that it has not drafted. So the outcome has
    all running beams among the best `kept`, and the first W_L that do not end run on. `scores` has `kept` other tokens.
    `final` is as for `verify_forest`: a search ends after the same layer, however deep the forest is.
    """
    running = [*beams]
    finished: list[Beam] = []
    live: list[int] = []
    needed: list[int] = []
    accepted = tested = 0
    for depth in range(numbering.depth + 1):
        drafted = _children(numbering, depth, {beam.node for beam in running})
        candidates = [
            (-beam.logprob - token.logprob, order, token.token_id, after(beam, token))
            for order, beam in enumerate(running)
            for token in (*scores[beam.node].listed, *scores[beam.node].others)
        ]
        ranked = [
            _at_node(beam, drafted.get((beam.node, beam.token_id)))
            for *_, beam in sorted(candidates, key=itemgetter(0, 1, 2))
        ]
        finished += [beam for beam in ranked[:width] if has_ended(numbering, beam)]
        best = [beam for beam in ranked[:kept] if not has_ended(numbering, beam)]
        running = best[:width]
        in_forest = sum(beam.token_id is None for beam in running)
        whole = in_forest == len(running)
        if depth < numbering.depth:
            tested += len(running)
            accepted += in_forest
            live.append(len(drafted))
            standing = {beam.node for beam in running}
            places = [place for place, node in enumerate(drafted.values(), start=1) if node in standing]
            needed += [max(places, default=1)] if whole else []
        if not whole or final(running, finished):
            break
    beams_left = tuple(running if kept is None else best)
    return RoundOutcome(beams_left, tuple(finished), tuple(live), tuple(needed), accepted, tested)


def _at_node(beam: Beam, node: int | None) -> Beam:
    """Return the beam as the node of its text, if the forest has one."""
    return beam if node is None else beam._replace(node=node, token_id=None)


def _children(numbering: Numbering, depth: int, parents: Collection[int]) -> dict[tuple[int, int | None], int]:
    """Return the nodes that continue some nodes after `depth` layers, by parent and token, in drawn order."""
    if depth == numbering.depth:
        return {}
    found: dict[tuple[int, int | None], int] = {}
    for node in numbering.slots[depth + 1]:
        text = numbering.nodes[node]
        assert text is not None, "only input beams have no parent"
        if text.parent in parents:
            found[text.parent, text.token_id] = node
    return found

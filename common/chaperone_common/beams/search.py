"""Beam search across the link: the same forests, and the likeliest beams in place of draws. Pure.

Nothing is random here. A layer stands if the large model's best beams are all in the forest. Otherwise the round ends
with its best beams, whether they were drafted or not. So the beams are those of beam search by the large model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
) -> RoundOutcome:
    """Return the beams of beam search after a round.

    As in Hugging Face's, the best 2 * W_L continuations of a layer are ranked by joint log-probability, of the model
    itself. Those among the best W_L that end a text are finished, and the best W_L of the others run on. `scores` lists
    the likeliest other tokens of each node, at least 2 * W_L of them. Equal beams: the earlier parent, the lower id.
    `final` is as for `verify_forest`: a search ends after the same layer, however deep the forest is.
    """
    running = [*beams]
    finished: list[Beam] = []
    accepted = tested = 0
    for depth in range(numbering.depth + 1):
        drafted = _children(numbering, depth)
        candidates = [
            (-beam.logprob - token.logprob, order, token.token_id, after(beam, token))
            for order, beam in enumerate(running)
            for token in (*scores[beam.node].listed, *scores[beam.node].others)
        ]
        ranked = [beam for *_, beam in sorted(candidates, key=itemgetter(0, 1, 2))[: 2 * width]]
        finished += [beam for beam in ranked[:width] if has_ended(numbering, beam)]
        best = [beam for beam in ranked if not has_ended(numbering, beam)][:width]
        nodes = [drafted.get((beam.node, beam.token_id)) for beam in best]
        tested += len(best) if drafted else 0
        accepted += sum(node is not None for node in nodes)
        running = [
            beam if node is None else beam._replace(node=node, token_id=None)
            for beam, node in zip(best, nodes, strict=True)
        ]
        if None in nodes or final(running, finished):
            break
    stood = depth + (None not in nodes)
    return RoundOutcome(tuple(running), tuple(finished), stood, accepted, tested)


def _children(numbering: Numbering, depth: int) -> dict[tuple[int, int | None], int]:
    """Return the nodes of the layer after `depth` layers, by parent and token."""
    if depth == numbering.depth:
        return {}
    found: dict[tuple[int, int | None], int] = {}
    for node in numbering.slots[depth + 1]:
        text = numbering.nodes[node]
        assert text is not None, "only input beams have no parent"
        found[text.parent, text.token_id] = node
    return found

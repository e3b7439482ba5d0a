"""Two models of a few tokens, as functions of the text: a large one, and a small one that resembles it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from chaperone_common.beams.chance import outcome_at, uniforms_of_others
from chaperone_common.beams.cloud import CloudBeams, Round
from chaperone_common.beams.drafting import ForestDraft
from chaperone_common.beams.rule import Float64s
from chaperone_common.beams.scoring import NodeScores, Scored, Scores

VOCABULARY = 8
EOS = 7
PROMPT = (1, 2)


@cache
def large(text: tuple[int, ...]) -> tuple[float, ...]:
    """Return the large model's law after a text."""
    return tuple(np.random.default_rng([1, *text]).dirichlet(np.ones(VOCABULARY) * 0.5).tolist())


def small(text: tuple[int, ...]) -> Float64s:
    """Return the small model's law after a text."""
    other = np.random.default_rng([2, *text]).dirichlet(np.ones(VOCABULARY))
    return np.asarray(0.7 * np.array(large(text)) + 0.3 * other, np.float64)


def scores_of(cloud: CloudBeams, asked: Round, *, seed: int, temperature: float) -> list[Scores]:
    """Return what the large model reports for a round."""
    found = []
    for text in asked.texts:
        paths = [text.tree.token_ids, *text.tree.paths()]
        asked_for = text.scoring
        nodes = zip(paths, asked_for.nodes, asked_for.listed, strict=True)
        found.append(
            Scores(tuple(_scores(path, listed, cloud.others, seed, node, temperature) for path, node, listed in nodes))
        )
    return found


def _scores(
    text: tuple[int, ...], listed: Sequence[int], others: int, seed: int, node: int, temperature: float
) -> NodeScores:
    law = np.array(large(text))
    scored = [Scored(token, float(np.log(p)), float(np.log(p))) for token, p in enumerate(law)]
    rest = law.copy()
    rest[list(listed)] = 0
    if temperature == 0:
        drawn = np.argsort(-rest, kind="stable")[: min(others, VOCABULARY - len(listed))].tolist()
    elif rest.sum() > 0:
        drawn = [outcome_at(rest, float(u)) for u in uniforms_of_others(seed, len(text), node, others)]
    else:
        drawn = []
    return NodeScores(
        tuple(scored[token] for token in listed), tuple(scored[token] for token in drawn), float(rest.sum())
    )


def grow(draft: ForestDraft, texts: Sequence[tuple[int, ...]], depth: int, prompt: tuple[int, ...] = PROMPT) -> None:
    """Let the small model draw some layers of a forest on these texts."""
    for _ in range(depth):
        if not (growing := draft.growing):
            return
        paths = [draft.numbering.path(node) for node in growing]
        draft.grow([small((*prompt, *texts[start], *tokens)) for start, tokens in paths])

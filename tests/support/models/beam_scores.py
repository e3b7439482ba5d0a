"""Scores of named tokens, from whole rows of logits: the oracle of the model's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chaperone_common.beams.chance import outcome_at, uniforms_of_others
from chaperone_common.beams.scoring import NodeScores, Scored, Scores, Scoring
from chaperone_common.sampling import warp
from chaperone_common.types import SamplingParams


def scores_of(
    rows: Sequence[NDArray[np.float32]], sampling: SamplingParams, scoring: Scoring, positions: Sequence[int]
) -> Scores:
    """Return the scores of each row [vocabulary]; `positions` are those of the tokens read."""
    asked = zip(rows, positions, scoring.listed, scoring.nodes, strict=True)
    return Scores(tuple(_node(*each, scoring.others, sampling) for each in asked))


def _node(
    logits: NDArray[np.float32],
    position: int,
    listed: tuple[int, ...],
    node: int,
    others: int,
    sampling: SamplingParams,
) -> NodeScores:
    wide = logits.astype(np.float64)
    logprobs = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    law = warp(logits, sampling) if sampling.temperature else np.exp(logprobs)
    with np.errstate(divide="ignore"):
        log_p = np.log(law) if sampling.temperature else logprobs
    rest = law.copy()
    rest[list(listed)] = 0.0
    if not sampling.temperature:
        order = [token for token in np.lexsort((np.arange(len(law)), -logits)).tolist() if token not in listed]
        drawn = order[:others]
    elif rest.any():
        drawn = [outcome_at(rest, float(u)) for u in uniforms_of_others(sampling.seed, position + 1, node, others)]
    else:
        drawn = []

    def scored(token_id: int) -> Scored:
        return Scored(token_id, float(log_p[token_id]), float(logprobs[token_id]))

    return NodeScores(tuple(map(scored, listed)), tuple(map(scored, drawn)), float(rest.sum()))

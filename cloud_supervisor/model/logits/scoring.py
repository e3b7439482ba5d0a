"""Scores of named tokens, from rows of logits that stay on the model's device.

Of each row, only the numbers that beams need are moved: those of the listed tokens, and of a few others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from chaperone_common.beams.chance import outcome_at, uniforms_of_others
from chaperone_common.beams.rule import Float64s
from chaperone_common.beams.scoring import NodeScores, Scored, Scores, Scoring
from chaperone_common.sampling import Ids, candidates
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.logits.rows import LogitRow, LogitRows


def scores(logits: torch.Tensor, sampling: SamplingParams, scoring: Scoring, positions: Sequence[int]) -> Scores:
    """Return the scores of each row of logits [nodes, vocabulary]; `positions` are those of the tokens read."""
    rows = LogitRows(logits, [sampling.temperature] * len(positions))
    totals = rows.logits.logsumexp(dim=1).tolist()
    found = []
    for row, total, position, listed, node in zip(rows, totals, positions, scoring.listed, scoring.nodes, strict=True):
        ids = np.array(listed, np.intp)
        if sampling.temperature == 0:
            found.append(_likeliest(row, total, ids, scoring.others))
            continue
        uniforms = uniforms_of_others(sampling.seed, position + 1, node, scoring.others)
        if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
            found.append(_drawn_from_all(row, total, ids, uniforms))
        else:
            found.append(_drawn(row, total, ids, uniforms, sampling))
    return Scores(tuple(found))


def _likeliest(row: LogitRow, total: float, listed: Ids, others: int) -> NodeScores:
    """Score for beam search: the law is the model's own."""
    count = min(others + len(listed), row.vocabulary)
    best = np.setdiff1d(row.best(count), listed) if count else listed
    logprobs = row.logits_at(best) - total
    order = np.lexsort((best, -logprobs))[:others]
    own = row.logits_at(listed) - total
    # Rounding would leave some mass to no token.
    mass = max(0.0, 1.0 - float(np.exp(own).sum())) if len(listed) < row.vocabulary else 0.0
    return NodeScores(_scored(listed, own, own), _scored(best[order], logprobs[order], logprobs[order]), mass)


def _drawn_from_all(row: LogitRow, total: float, listed: Ids, uniforms: Float64s) -> NodeScores:
    """Score without truncation: all tokens have a weight."""
    weights = row.weights()
    of_listed = weights[torch.from_numpy(listed)].double().cpu().numpy()
    weights[torch.from_numpy(listed)] = 0.0
    sums = weights.double().cumsum(dim=0)
    mass = float(sums[-1])
    whole = mass + float(of_listed.sum())
    with np.errstate(divide="ignore"):
        log_p = np.log(of_listed / whole)
    scored = _scored(listed, log_p, row.logits_at(listed) - total)
    if mass == 0.0:
        return NodeScores(scored, (), 0.0)
    places = torch.searchsorted(sums, torch.from_numpy(uniforms * mass).to(sums.device), right=True)
    others = places.cpu().numpy().astype(np.intp)
    of_others = weights[places].double().cpu().numpy()
    return NodeScores(scored, _scored(others, np.log(of_others / whole), row.logits_at(others) - total), mass / whole)


def _drawn(row: LogitRow, total: float, listed: Ids, uniforms: Float64s, sampling: SamplingParams) -> NodeScores:
    """Score with truncation: few tokens are left."""
    kept, scaled = candidates(row, sampling)
    order = np.argsort(kept)  # as without truncation, the cumulative sum goes along the ids
    kept, weights = kept[order], np.exp(scaled[order].astype(np.float64))
    weights /= weights.sum()
    law = dict(zip(kept.tolist(), weights.tolist(), strict=True))
    log_p = np.array([math.log(law[token]) if law.get(token) else -math.inf for token in listed.tolist()])
    scored = _scored(listed, log_p, row.logits_at(listed) - total)
    left = np.where(np.isin(kept, listed), 0.0, weights)
    if not left.any():
        return NodeScores(scored, (), 0.0)
    drawn = np.array([outcome_at(left, float(u)) for u in uniforms])
    others = kept[drawn]
    return NodeScores(scored, _scored(others, np.log(weights[drawn]), row.logits_at(others) - total), float(left.sum()))


def _scored(ids: Ids, log_p: Float64s, logprobs: Float64s) -> tuple[Scored, ...]:
    return tuple(map(Scored, ids.tolist(), log_p.tolist(), np.minimum(logprobs, 0.0).tolist()))

"""Scores of named tokens, and the forests they verify: as a few lines of NumPy compute them from whole rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from chaperone_common.beams.cloud import CloudBeams, TextScores
from chaperone_common.beams.drafting import ForestDraft
from chaperone_common.beams.frames import BeamSettings, ForestFrame
from chaperone_common.beams.rule import Float64s
from chaperone_common.beams.scoring import NodeScores, Scores, Scoring
from chaperone_common.sampling import warp
from chaperone_common.token_tree import TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.logits.scoring import scores
from cloud_supervisor.model.ports import ForwardRequest
from cloud_supervisor.model.torch_model import TorchModel
from tests.support.models.beam_scores import scores_of

PROMPT = (5, 80, 41, 7, 19)
SAMPLINGS = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=3),
    SamplingParams(temperature=0.7, seed=4),
    SamplingParams(temperature=1.5, top_k=5, seed=5),
    SamplingParams(temperature=1.0, top_p=0.8, seed=6),
    SamplingParams(temperature=0.9, min_p=0.1, top_k=9, top_p=0.95, seed=7),
]


def _rows(count: int, vocabulary: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def _close(found: NodeScores, expected: NodeScores) -> None:
    for own, other in ((found.listed, expected.listed), (found.others, expected.others)):
        assert [token.token_id for token in own] == [token.token_id for token in other]
        np.testing.assert_allclose([token.log_p for token in own], [token.log_p for token in other], atol=1e-4)
        np.testing.assert_allclose([token.logprob for token in own], [token.logprob for token in other], atol=1e-4)
    assert found.other_mass == pytest.approx(expected.other_mass, abs=1e-5)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_scores_are_those_of_whole_rows(sampling: SamplingParams) -> None:
    logits = _rows(5, 40)
    listed = ((3, 7), (), tuple(range(40)), tuple(logits[3].topk(6).indices.tolist()), (39,))
    asked = Scoring(listed, (0, 4, 2, 9, 1), 4)
    positions = [10, 11, 11, 12, 12]
    expected = scores_of([row.numpy() for row in logits], sampling, asked, positions)
    found = scores(logits, sampling, asked, positions)
    for own, other in zip(found.nodes, expected.nodes, strict=True):
        _close(own, other)


@pytest.mark.parametrize("sampling", SAMPLINGS[1:])
def test_listed_and_other_tokens_have_all_probability(sampling: SamplingParams) -> None:
    logits = _rows(1, 30)
    listed = tuple(range(0, 30, 3))
    [node] = scores(logits, sampling, Scoring((listed,), (0,), 2), [5]).nodes
    assert sum(np.exp(token.log_p) for token in node.listed) + node.other_mass == pytest.approx(1)
    law = warp(logits[0].numpy(), sampling)
    for token in (*node.listed, *node.others):
        assert np.exp(token.log_p) == pytest.approx(law[token.token_id], abs=1e-6)


def test_no_other_token_is_drawn_where_none_is_left() -> None:
    for logits in _rows(20, 6).split(1):  # the probabilities of some rows add up to less than 1
        for sampling, listed in (
            (SamplingParams(), tuple(range(6))),
            (SamplingParams(temperature=1.0), tuple(range(6))),
            (SamplingParams(temperature=1.0, top_k=1), (int(logits[0].argmax()),)),
        ):
            [node] = scores(logits, sampling, Scoring((listed,), (0,), 3), [5]).nodes
            assert node.others == ()
            assert node.other_mass == 0.0


@pytest.mark.parametrize("sampling", [SamplingParams(temperature=1.0, seed=1), SamplingParams(1.2, 0.95, seed=1)])
def test_other_tokens_follow_the_law_of_the_others(sampling: SamplingParams) -> None:
    logits = _rows(1, 12, seed=3)
    listed = (0, 5)
    law = warp(logits[0].numpy(), sampling)
    law[list(listed)] = 0
    law /= law.sum()
    drawn: Counter[int] = Counter()
    for position in range(400):
        [node] = scores(logits, sampling, Scoring((listed,), (position % 7,), 40), [position]).nodes
        drawn.update(token.token_id for token in node.others)
    total = sum(drawn.values())
    assert sum(abs(drawn[token] / total - law[token]) for token in range(12)) / 2 < 0.02


def test_the_likeliest_others_are_in_order_and_ties_go_to_the_lower_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0, 0.0]])
    [node] = scores(logits, SamplingParams(), Scoring(((2,),), (0,), 3), [0]).nodes
    assert [token.token_id for token in node.others] == [1, 4, 3]
    [node] = scores(logits, SamplingParams(), Scoring(((2,),), (0,), 30), [0]).nodes
    assert [token.token_id for token in node.others] == [1, 4, 3, 0, 5]


# Forests, verified by the tiny pair.


def _row(model: TorchModel, text: tuple[int, ...]) -> NDArray[np.float32]:
    request = ForwardRequest(model.kv_pool.new_cache(), TokenTree(text), 1, SamplingParams())
    row: NDArray[np.float32] = model.scores(request)[0]
    return row


def _law_of_drafts(model: TorchModel, text: tuple[int, ...], sampling: SamplingParams) -> Float64s:
    """Return a law that resembles the model's own, so that some drafts stand and others do not."""
    row = _row(model, text)
    noise = np.random.default_rng([2, *text]).normal(size=len(row)).astype(np.float32)
    return warp(row + noise, SamplingParams(temperature=sampling.temperature or 1.0))


def _scored(model: TorchModel, texts: tuple[TextScores, ...], sampling: SamplingParams) -> list[Scores]:
    """Return the scores of all texts of a round, from one forward."""
    requests = [
        ForwardRequest(model.kv_pool.new_cache(), text.tree, 1, sampling, scoring=text.scoring) for text in texts
    ]
    return [found for found in model.step(requests) if isinstance(found, Scores)]


def _from_rows(model: TorchModel, text: TextScores, sampling: SamplingParams) -> Scores:
    paths = [text.tree.token_ids, *text.tree.paths()]
    rows = [_row(model, path) for path in paths]
    return scores_of(rows, sampling, text.scoring, [len(path) - 1 for path in paths])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_forest_is_verified_as_by_whole_rows(target: TorchModel, sampling: SamplingParams) -> None:
    vocabulary = len(_row(target, PROMPT))
    by_scores, by_rows = (CloudBeams(BeamSettings(3), sampling, PROMPT, 12, (), vocabulary) for _ in range(2))
    tested = accepted = 0
    while not by_scores.progress.done:
        progress = by_scores.progress
        draft = ForestDraft(
            progress, len(PROMPT), width=4, row_tokens=8, temperature=sampling.temperature, seed=sampling.seed
        )
        texts = progress.texts
        for _ in range(min(2, progress.layers_left - 1)):
            paths = [draft.numbering.path(node) for node in draft.growing]
            draft.grow([_law_of_drafts(target, (*PROMPT, *texts[start], *path), sampling) for start, path in paths])
        frame = ForestFrame(progress.round, draft.forest())
        asked, also_asked = by_scores.receive(frame), by_rows.receive(frame)
        found = by_scores.answer(asked, _scored(target, asked.texts, sampling))
        expected = by_rows.answer(also_asked, [_from_rows(target, text, sampling) for text in also_asked.texts])
        for own, other in zip(found.running, expected.running, strict=True):
            assert (own.node, own.token_id) == (other.node, other.token_id)
            assert (own.log_p, own.logprob) == pytest.approx((other.log_p, other.logprob), abs=1e-3)
        assert (found.accepted, found.tested) == (expected.accepted, expected.tested)
        tested, accepted = tested + found.tested, accepted + found.accepted
    assert 0 < accepted < tested

"""Beam search in rounds of forests is beam search by the large model alone, whatever was drafted."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from chaperone_common.beams.draft_row import DraftRow
from chaperone_common.beams.forest import Draw, Numbering
from chaperone_common.beams.scoring import NodeScores, Scored
from chaperone_common.beams.search import search_forest
from chaperone_common.beams.verification import Beam

VOCABULARY = 6
EOS = 5
Text = tuple[int, ...]


@cache
def _logprobs(text: Text) -> tuple[float, ...]:
    law = np.random.default_rng([3, *text, len(text)]).dirichlet(np.ones(VOCABULARY) * 0.4)
    return tuple(np.log(np.maximum(law, 1e-12)).tolist())


def _searched_alone(width: int, tokens: int) -> tuple[list[Text], set[Text]]:
    """Return the running beams after some tokens, best first, and the finished ones: a few lines, all continuations."""
    running: dict[Text, float] = {(): 0.0}
    finished: set[Text] = set()
    for _ in range(tokens):
        reached: dict[Text, float] = {
            (*text, token): logprob + _logprobs(text)[token]
            for text, logprob in running.items()
            for token in range(VOCABULARY)
        }
        ranked = sorted(reached, key=lambda text: -reached[text])[: 2 * width]
        finished |= {text for text in ranked[:width] if text[-1] == EOS}
        running = {text: reached[text] for text in [text for text in ranked if text[-1] != EOS][:width]}
    return [*running], finished


def _scores(numbering: Numbering, inputs: list[Text], others: int) -> list[NodeScores]:
    found = []
    for node in range(len(numbering.nodes)):
        start, tokens = numbering.path(node)
        logprobs = _logprobs((*inputs[start], *tokens))
        scored = [Scored(token, logprob, logprob) for token, logprob in enumerate(logprobs)]
        listed = numbering.rows[node].token_ids if node in numbering.rows else ()
        rest = sorted((token for token in scored if token.token_id not in listed), key=lambda token: -token.logprob)
        found.append(NodeScores(tuple(scored[token] for token in listed), tuple(rest[:others]), 0.0))
    return found


def _drafted(inputs: int, depth: int, rng: np.random.Generator) -> Numbering:
    """Return a forest of any draws at all."""
    numbering = Numbering(tuple(range(inputs)), {EOS})
    for _ in range(depth):
        growing = numbering.growing()
        rows = [DraftRow.of(rng.dirichlet(np.ones(VOCABULARY)), 3) for _ in growing]
        by_node = dict(zip(growing, rows, strict=True))
        slots = [slot for slot, node in enumerate(numbering.slots[-1]) if node in by_node]
        if not slots:
            break
        draws = []
        for slot in rng.choice(slots, 5):
            row = by_node[numbering.slots[-1][slot]]
            draws.append(Draw(int(slot), int(rng.integers(len(row)))))
        numbering.continue_with(rows, draws)
    return numbering


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_beams_are_those_of_beam_search_by_the_large_model_alone(width: int, depth: int) -> None:
    rng = np.random.default_rng(width + 10 * depth)
    texts: list[Text] = [()]
    logprobs = [0.0]
    finished: set[Text] = set()
    while texts and len(texts[0]) < 12:
        numbering = _drafted(len(texts), depth, rng)
        beams = [Beam(node, None, logprob, logprob) for node, logprob in enumerate(logprobs)]
        found = search_forest(numbering, beams, _scores(numbering, texts, 2 * width), width)
        whole = {beam: _text_of(numbering, texts, beam) for beam in (*found.running, *found.finished)}
        finished |= {whole[beam] for beam in found.finished}
        texts, logprobs = [whole[beam] for beam in found.running], [beam.logprob for beam in found.running]
        alone, finished_alone = _searched_alone(width, len(texts[0]) if texts else 12)
        assert texts == alone
        assert finished == finished_alone


def test_drafts_that_are_the_best_beams_stand() -> None:
    best = [int(np.argmax(_logprobs(()))), 0]
    best[1] = int(np.argmax(_logprobs((best[0],))))
    numbering = Numbering((0,), ())
    for token in best:
        numbering.continue_with([DraftRow((token,), b"\0")], [Draw(0, 0)])
    found = search_forest(numbering, [Beam(0, None, 0.0, 0.0)], _scores(numbering, [()], 2), 1)
    assert (found.live, found.needed, found.accepted, found.tested) == ((1, 1), (1, 1), 2, 2)
    assert [beam.node for beam in found.running] == [2]
    assert found.running[0].token_id is not None


def _text_of(numbering: Numbering, inputs: list[Text], beam: Beam) -> Text:
    start, tokens = numbering.path(beam.node)
    return (*inputs[start], *tokens, *([] if beam.token_id is None else [beam.token_id]))

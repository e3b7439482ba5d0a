"""Forests: their numbers, and their verification layer by layer, on a vocabulary of a few tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from chaperone_common.beams.draft_row import MAX_ROW_TOKENS, DraftRow
from chaperone_common.beams.forest import Draw, Forest, Node, Numbering, numbered
from chaperone_common.beams.rule import Chance, Float64s, beam_law
from chaperone_common.beams.scoring import NodeScores, Scored
from chaperone_common.beams.verification import Beam, verify_forest
from chaperone_common.beams.width import FixedWidth
from tests.unit.beams.every_chance import law_of, total_variation

EOS = 3


def _row(*token_ids: int, steps: Sequence[int] | None = None) -> DraftRow:
    return DraftRow(token_ids, bytes(steps or [8 * place for place in range(len(token_ids))]))


# Numbers.


def test_two_draws_of_one_text_are_two_slots_of_one_node() -> None:
    forest = Forest((_row(5, 6), _row(7)), ((Draw(0, 1), Draw(0, 1)), (Draw(1, 0),)))
    numbering = numbered(forest, (0,), {EOS})
    assert numbering.nodes == [None, Node(0, 6), Node(1, 7)]
    assert numbering.slots == [(0,), (1, 1), (2,)]
    assert numbering.parents == [(), (0, 0), (1,)]
    assert numbering.path(2) == (0, [6, 7])


def test_equal_input_beams_share_a_node_and_a_row() -> None:
    numbering = numbered(Forest((_row(5), _row(6)), ((Draw(0, 0), Draw(1, 0), Draw(2, 0)),)), (0, 0, 1), ())
    assert numbering.slots[1] == (2, 2, 3)
    assert numbering.growing() == [2, 3]


def test_a_text_that_ended_has_no_row() -> None:
    numbering = numbered(Forest((_row(5, EOS),), ((Draw(0, 1), Draw(0, 0)),)), (0,), {EOS})
    assert numbering.ends(1)
    assert numbering.growing() == [2]


def test_the_log_probability_of_a_node_is_that_of_its_draws() -> None:
    rows = (_row(5, 6), _row(7, 8))
    numbering = numbered(Forest(rows, ((Draw(0, 1),), (Draw(0, 0),))), (0,), ())
    assert numbering.log_q[2] == pytest.approx(np.log(rows[0].law()[1]) + np.log(rows[1].law()[0]))


@pytest.mark.parametrize(
    ("forest", "message"),
    [
        (Forest((_row(5),), ((Draw(1, 0),),)), "draw 0 of layer 0 continues slot 1 of 1"),
        (Forest((_row(5),), ((Draw(0, 1),),)), "draw 0 of layer 0 is number 1 in a row of 1 tokens"),
        (Forest((), ((Draw(0, 0),),)), "rows: 0 in layer 0; it has 1 texts to continue"),
        (Forest((_row(5), _row(6)), ((Draw(0, 0),),)), "rows: 2, and the layers continue 1 texts"),
        (Forest((_row(5),), ((),)), "draws: 0 in layer 0; give 1 to 16"),
        (Forest((_row(5),), (((Draw(0, 0),) * 17),)), "draws: 17 in layer 0; give 1 to 16"),
        (Forest((), ((),) * 17), "layers: 17; at most 16 are allowed"),
        (
            Forest((_row(EOS),), ((Draw(0, 0),), (Draw(0, 0),))),
            "draw 0 of layer 1 continues slot 0, whose text has ended",
        ),
    ],
)
def test_an_impossible_forest_is_refused(forest: Forest, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        numbered(forest, (0,), {EOS})


@pytest.mark.parametrize("inputs", [(), (1,), (0, 2)])
def test_impossible_inputs_are_refused(inputs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="are not numbers of nodes from 0 on"):
        Numbering(inputs, ())


# Rows.


def test_a_row_keeps_the_likeliest_tokens_in_steps_of_a_sixteenth_nat() -> None:
    row = DraftRow.of(np.array([0.1, 0.5, 0.1, 0.3, 0.0]), 3)
    assert row.token_ids == (1, 3, 0)
    assert [*row.steps] == [0, round(np.log(0.5 / 0.3) * 16), round(np.log(5) * 16)]
    np.testing.assert_allclose(row.law(), np.array([0.5, 0.3, 0.1]) / 0.9, rtol=0.04)


def test_a_row_leaves_out_tokens_without_probability() -> None:
    assert DraftRow.of(np.array([0.0, 1.0, 1e-9]), 3).token_ids == (1,)


@pytest.mark.parametrize(
    ("token_ids", "steps", "message"),
    [
        ([], [], "row: 0 tokens with 0 probabilities"),
        ([1, 2], [0], "row: 2 tokens with 1 probabilities"),
        ([*range(MAX_ROW_TOKENS + 1)], [0] * (MAX_ROW_TOKENS + 1), "row: 65 tokens with 65 probabilities"),
        ([1, 1], [0, 0], "row: a token is there twice"),
    ],
)
def test_an_impossible_row_is_refused(token_ids: list[int], steps: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DraftRow(tuple(token_ids), bytes(steps))


# Whole rounds: the law of the beams after two tokens is that of beam sampling by the large model alone.

VOCABULARY = 3


@cache
def _p(text: tuple[int, ...]) -> tuple[float, ...]:
    """Return the large model's law after a text."""
    return tuple(np.random.default_rng([1, *text, len(text)]).dirichlet(np.ones(VOCABULARY)).tolist())


@cache
def _q_row(text: tuple[int, ...]) -> DraftRow:
    """Return the small model's row after a text: another law, and of it the two likeliest tokens."""
    other = np.random.default_rng([2, *text, len(text)]).dirichlet(np.ones(VOCABULARY))
    return DraftRow.of((np.array(_p(text)) + other) / 2, 2)


def _scores(numbering: Numbering, inputs: Sequence[tuple[int, ...]]) -> list[NodeScores]:
    found = []
    for node in range(len(numbering.nodes)):
        start, tokens = numbering.path(node)
        text = (*inputs[start], *tokens)
        scored = [Scored(token, float(np.log(p)), float(np.log(p))) for token, p in enumerate(_p(text))]
        listed = numbering.rows[node].token_ids if node in numbering.rows else ()
        others = [scored[token] for token in range(VOCABULARY) if token not in listed]
        if len(others) > 1:
            found.append(NodeScores(tuple(scored), (), 0.0))  # after the last layer: all tokens by name
        else:
            found.append(
                NodeScores(
                    tuple(scored[token] for token in listed),
                    tuple(others) * 4,
                    sum(np.exp(token.log_p) for token in others),
                )
            )
    return found


def _draft(
    inputs: Sequence[tuple[int, ...]], log_p: Sequence[float], draws: int, depth: int, chance: Chance
) -> Numbering:
    distinct = list(dict.fromkeys(inputs))
    numbering = Numbering(tuple(distinct.index(text) for text in inputs), {EOS})
    start = dict(zip(numbering.inputs, log_p, strict=True))
    for _ in range(depth):
        texts = {node: (*distinct[numbering.path(node)[0]], *numbering.path(node)[1]) for node in numbering.growing()}
        rows = {node: _q_row(text) for node, text in texts.items()}
        slots = numbering.slots[-1]
        weights = np.array([start[numbering.path(node)[0]] + numbering.log_q[node] for node in slots])
        law = beam_law(weights, [rows[node].law() for node in slots])
        first = np.cumsum([0, *(len(rows[node]) for node in slots)])
        found = []
        for _ in range(draws):
            outcome = chance.outcome(law)
            slot = int(np.searchsorted(first, outcome, side="right")) - 1
            found.append(Draw(slot, outcome - int(first[slot])))
        numbering.continue_with([*rows.values()], found)
    return numbering


def _by_forests(tokens: int, width: int, draws: int, depth: int, chance: Chance) -> tuple[tuple[int, ...], ...]:
    """Return the beams after some tokens, in rounds of forests."""
    texts: list[tuple[int, ...]] = [()] * width
    log_p = [0.0] * width
    while (left := tokens - len(texts[0])) > 0:
        numbering = _draft(texts, log_p, draws, min(depth, left - 1), chance)
        distinct = list(dict.fromkeys(texts))
        beams = [Beam(node, None, weight, weight) for node, weight in zip(numbering.inputs, log_p, strict=True)]
        found = verify_forest(numbering, beams, _scores(numbering, distinct), FixedWidth(width), lambda _: chance)
        texts, log_p = [], []
        for beam in found.running:
            start, drafted = numbering.path(beam.node)
            text = (*distinct[start], *drafted, *([] if beam.token_id is None else [beam.token_id]))
            assert beam.log_p == pytest.approx(sum(np.log(_p(text[:end])[text[end]]) for end in range(len(text))))
            texts.append(text)
            log_p.append(beam.log_p)
        assert len(set(map(len, texts))) == 1
    return tuple(sorted(texts))


def _by_beam_sampling(tokens: int, width: int, chance: Chance) -> tuple[tuple[int, ...], ...]:
    texts: list[tuple[int, ...]] = [()] * width
    for _ in range(tokens):
        log_p = [sum(np.log(_p(text[:end])[text[end]]) for end in range(len(text))) for text in texts]
        law = beam_law(np.array(log_p, np.float64), [np.array(_p(text)) for text in texts])
        outcomes = [chance.outcome(law) for _ in range(width)]
        texts = [(*texts[outcome // VOCABULARY], outcome % VOCABULARY) for outcome in outcomes]
    return tuple(sorted(texts))


@pytest.mark.parametrize(
    ("tokens", "width", "draws", "depth"), [(2, 1, 1, 1), (2, 1, 3, 1), (2, 2, 2, 1), (2, 2, 3, 1), (3, 1, 2, 2)]
)
def test_the_beams_of_forests_are_those_of_beam_sampling(tokens: int, width: int, draws: int, depth: int) -> None:
    law = law_of(lambda chance: _by_forests(tokens, width, draws, depth, chance))
    truth = law_of(lambda chance: _by_beam_sampling(tokens, width, chance))
    assert sum(law.values()) == pytest.approx(1)
    assert total_variation(law, truth) == pytest.approx(0, abs=1e-9)


# One layer on texts that were drawn several times: a text counts as often as it survives.


class Pattern:
    """Decides as it is given."""

    def __init__(self, stands: Sequence[bool]) -> None:
        self._stands = iter(stands)

    def stands(self, probability: float) -> bool:
        return next(self._stands)

    def outcome(self, law: Float64s) -> int:
        raise AssertionError("all beams of this layer are drafted")


def _second_layer(width: int, places: Sequence[int], stands: Sequence[bool], chance: Chance) -> tuple[object, ...]:
    """Return the beams of a second layer, after a first one with these draws, of which some stand."""
    numbering = Numbering((0,) * width, {EOS})
    numbering.continue_with([_q_row(())], [Draw(0, place) for place in places])
    rows = [_q_row(tuple(numbering.path(node)[1])) for node in numbering.growing()]
    by_node = dict(zip(numbering.growing(), rows, strict=True))
    slots = numbering.slots[1]
    law = beam_law(np.array([numbering.log_q[node] for node in slots]), [by_node[node].law() for node in slots])
    first = np.cumsum([0, *(len(by_node[node]) for node in slots)])
    draws = []
    for _ in places:
        outcome = chance.outcome(law)
        slot = int(np.searchsorted(first, outcome, side="right")) - 1
        draws.append(Draw(slot, outcome - int(first[slot])))
    numbering.continue_with(rows, draws)
    layers = iter((False, True))
    found = verify_forest(
        numbering,
        [Beam(0, None, 0.0, 0.0)] * width,
        _scores(numbering, [()]),
        FixedWidth(width),
        lambda depth: chance if depth else Pattern(stands),
        lambda running, finished: next(layers),
    )
    texts = [(*numbering.path(beam.node)[1], beam.token_id) for beam in found.running]
    return tuple(sorted(tuple(token for token in text if token is not None) for text in texts))


@pytest.mark.parametrize(
    ("width", "places", "stands"),
    [
        (2, (0, 0, 1), (True, False, True)),  # a draw after the rejected slot is one after its text, which survives
        (2, (0, 1, 1), (True, True)),
        (2, (0, 0, 1), (True, True)),
        (3, (0, 0, 1), (True, True, True)),
        (1, (1, 1, 0), (False, True)),
    ],
)
def test_a_text_that_was_drawn_several_times_counts_as_often_as_it_survives(
    width: int, places: tuple[int, ...], stands: tuple[bool, ...]
) -> None:
    row = _q_row(())
    surviving = [(row.token_ids[place],) for place, stood in zip(places, stands, strict=False) if stood]
    weights = np.array([np.log(_p(())[text[0]]) for text in surviving])
    outcomes = [(*text, token) for text in surviving for token in range(VOCABULARY)]
    truth_of_one = beam_law(weights, [np.array(_p(text)) for text in surviving])
    law = law_of(lambda chance: _second_layer(width, places, stands, chance))
    truth = law_of(lambda chance: tuple(sorted(outcomes[chance.outcome(truth_of_one)] for _ in range(width))))
    assert sum(law.values()) == pytest.approx(1)
    assert total_variation(law, truth) == pytest.approx(0, abs=1e-9)

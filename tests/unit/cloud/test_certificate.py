"""Choices from the leading log-probabilities: those that are certified are the model's, and most are certified."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chaperone_common.sampling import choose, softmax
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.certificate import certified_choice
from tests.support.cloud.forward import feeding

Row = NDArray[np.float32]


def certified(row: Row, known: int, params: SamplingParams, position: int) -> int | None:
    """Certify a choice from the `known` likeliest tokens of a row of logits."""
    exact = row.astype(np.float64)
    log_probabilities = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    ids = np.argsort(-log_probabilities, kind="stable")[:known]
    return certified_choice(ids, log_probabilities[ids], len(row), params, position)


def chosen(row: Row, params: SamplingParams, position: int) -> int:
    return choose(softmax(row, params.temperature), params, position).token_id


@settings(max_examples=500)
@given(data=st.data())
def test_a_certified_choice_is_the_models(data: st.DataObject) -> None:
    vocabulary = data.draw(st.sampled_from([2, 5, 60, 3000]))
    dice = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    row = (dice.standard_normal(vocabulary) * data.draw(st.sampled_from([0.0, 0.5, 3.0, 10.0]))).astype(np.float32)
    if data.draw(st.booleans()):
        row = row.round()  # ties
    params = SamplingParams(
        temperature=data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0])),
        top_k=data.draw(st.sampled_from([0, 1, 3, 40])),
        top_p=data.draw(st.sampled_from([1.0, 0.9, 0.5, 0.01])),
        min_p=data.draw(st.sampled_from([0.0, 0.1])),
        seed=data.draw(st.integers(0, 2**64 - 1)),
    )
    position = data.draw(st.integers(0, 1000))
    known = min(vocabulary, data.draw(st.sampled_from([1, 2, 5, 20, 3000])))
    token_id = certified(row, known, params, position)
    assert token_id in (None, chosen(row, params, position))


@pytest.mark.parametrize(
    ("params", "known", "least"),
    [
        (SamplingParams(), 2, 1.0),
        (SamplingParams(temperature=0.7, top_p=0.9, seed=1), 100, 0.9),
        (SamplingParams(temperature=0.7, top_k=10, seed=1), 20, 1.0),
        (SamplingParams(temperature=0.7, seed=1), 20, 0.5),
    ],
)
def test_most_choices_of_a_model_are_certified_by_a_few_tokens(
    tiny_pair: Path, params: SamplingParams, known: int, least: float
) -> None:
    from cloud_supervisor.model.torch_model import TorchModel  # slow to import

    folder = tiny_pair / "cloud"
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    model = TorchModel.load(folder, dtype="float32", threads=1, vocabulary_size=vocabulary, context_tokens=128)
    dice = Random(5)
    cache = model.kv_pool.new_cache()
    text = [dice.randrange(vocabulary) for _ in range(8)]
    rows: list[Row] = []
    fresh = text
    for position in range(8, 68):
        row = model.scores(feeding(cache, fresh, 1, params))[0]
        rows.append(row)
        fresh = [chosen(row, params, position)]
    found = [certified(row, known, params, position) for position, row in enumerate(rows, start=8)]
    assert [token_id for token_id in found if token_id is not None] == [
        chosen(row, params, position)
        for position, (row, token_id) in enumerate(zip(rows, found, strict=True), start=8)
        if token_id is not None
    ]
    assert sum(token_id is not None for token_id in found) >= least * len(found)


def test_more_known_tokens_certify_what_fewer_left_open() -> None:
    row = np.linspace(1.0, 0.0, 50, dtype=np.float32)
    params = SamplingParams(temperature=1.0, seed=3)
    certainties = [certified(row, known, params, 4) for known in range(1, 51)]
    first = next(known for known, token_id in enumerate(certainties) if token_id is not None)
    assert first > 0
    assert certainties == [None] * first + [chosen(row, params, 4)] * (50 - first)


@pytest.mark.parametrize("log_probabilities", [[], [-1.0], [-2.0, -1.0]])
def test_log_probabilities_in_another_order_are_refused(log_probabilities: list[float]) -> None:
    with pytest.raises(ValueError, match="give them in falling order"):
        certified_choice(np.array([4, 5]), np.array(log_probabilities), 10, SamplingParams(), 0)

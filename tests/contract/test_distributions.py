"""Every `Distribution` gives `choose` the same choice, wherever its logits are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_common.errors import ModelCorrupt
from chaperone_common.logprobs import LEAST_LOGPROB, ChoiceLogprobs, measure
from chaperone_common.sampling import Distribution, choose, softmax
from chaperone_common.types import SamplingParams
from cloud_supervisor.model.logits.rows import LogitRows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rows_of(logits: torch.Tensor, temperature: float) -> list[Distribution]:
    return [*LogitRows(logits, [temperature] * len(logits))]


def arrays_of(logits: torch.Tensor, temperature: float) -> list[Distribution]:
    return [softmax(row, temperature) for row in logits.float().numpy()]


@pytest.fixture(params=[rows_of, arrays_of], ids=["rows", "arrays"])
def distributions(request: pytest.FixtureRequest) -> Callable[[torch.Tensor, float], list[Distribution]]:
    return request.param  # type: ignore[no-any-return]


def test_a_distribution_knows_its_likeliest_tokens(
    distributions: Callable[[torch.Tensor, float], list[Distribution]],
) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, -1.0, -9.0, 0.0]])
    [first, second] = distributions(logits, 0.5)
    assert [(row.vocabulary, row.top, row.second) for row in (first, second)] == [(4, 1, 2), (4, 0, 3)]
    assert first.total == pytest.approx(2 + np.exp(-2) + np.exp(-4))
    ids, scaled = first.above(np.exp(-2.5))
    assert (ids.tolist(), scaled.tolist()) == ([1, 2, 3], [0.0, 0.0, -2.0])
    assert second.at(np.array([2, 1])).tolist() == [-18.0, -2.0]
    assert len(second.above(0.0)[0]) == 4


def test_scores_that_are_no_numbers_are_refused(
    distributions: Callable[[torch.Tensor, float], list[Distribution]],
) -> None:
    with pytest.raises(ModelCorrupt, match="its scores are not numbers"):
        distributions(torch.tensor([[0.0, torch.nan]]), 1.0)


@settings(max_examples=300)
@given(data=st.data())
def test_choices_do_not_depend_on_where_the_logits_are(data: st.DataObject) -> None:
    """Over flat and peaked rows, ties, filters, and data types."""
    vocabulary = data.draw(st.sampled_from([1, 2, 3, 50, 5000, 40_000]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    logits = torch.randn(3, vocabulary, generator=generator) * data.draw(st.sampled_from([0.0, 0.01, 1.0, 3.0, 30.0]))
    logits[:, torch.randint(vocabulary, (vocabulary // 3,), generator=generator)] = -torch.inf
    logits[:, 0] = logits[:, 0].clamp(min=-5.0)
    logits = logits.to(data.draw(st.sampled_from(DTYPES)))
    params = SamplingParams(
        temperature=data.draw(st.sampled_from([0.0, 1e-3, 0.2, 0.7, 1.0, 2.5])),
        top_k=data.draw(st.sampled_from([0, 1, 5, 200])),
        top_p=data.draw(st.sampled_from([1.0, 0.95, 0.5, 0.01])),
        min_p=data.draw(st.sampled_from([0.0, 0.05, 1e-5])),
        seed=data.draw(st.integers(0, 2**64 - 1)),
    )
    position = data.draw(st.integers(0, 1000))
    [one, other] = [
        [choose(row, params, position) for row in rows]
        for rows in (rows_of(logits, params.temperature), arrays_of(logits, params.temperature))
    ]
    assert one == other


@settings(max_examples=200)
@given(data=st.data())
def test_log_probabilities_are_those_of_the_softmax_wherever_the_logits_are(data: st.DataObject) -> None:
    """At temperature 1, whatever the temperature of the choices is; ties go to the lower id."""
    vocabulary = data.draw(st.sampled_from([1, 2, 3, 50, 5000]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    logits = torch.randn(2, vocabulary, generator=generator) * data.draw(st.sampled_from([0.0, 1.0, 3.0, 30.0]))
    logits[:, torch.randint(vocabulary, (vocabulary // 3,), generator=generator)] = -torch.inf
    logits[:, 0] = logits[:, 0].clamp(min=-5.0)
    logits = logits.to(data.draw(st.sampled_from(DTYPES)))
    count = data.draw(st.sampled_from([0, 1, 5, 20]))
    chosen = data.draw(st.integers(0, vocabulary - 1))
    expected = torch.log_softmax(logits.double(), dim=1).clamp(min=LEAST_LOGPROB).numpy()
    arrays = [measure(row, chosen, count) for row in logits.float().numpy()]
    rows = [row.logprobs(chosen, count) for row in LogitRows(logits, [0.7, 0.0])]
    for found, other, row in zip(arrays, rows, expected, strict=True):
        likeliest = np.argsort(-row, kind="stable")[:count]
        assert [token_id for token_id, _ in found.top] == [token_id for token_id, _ in other.top] == [*likeliest]
        for each in (found, other):
            assert each.logprob == pytest.approx(row[chosen], abs=1e-4)
            assert [value for _, value in each.top] == pytest.approx([*row[likeliest]], abs=1e-4)
            assert all(LEAST_LOGPROB <= value <= 0 for value in (each.logprob, *(value for _, value in each.top)))


def test_a_certain_token_has_a_log_probability_of_zero() -> None:
    logits = np.array([50.0, -np.inf], np.float32)
    assert measure(logits, 0, 2) == ChoiceLogprobs(0.0, ((0, 0.0), (1, LEAST_LOGPROB)))

"""Scores through the queue: they belong to the last chunk, whatever runs next to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from chaperone_common.beams.scoring import Scores, Scoring
from chaperone_common.token_tree import BranchToken, TokenTree
from chaperone_common.types import SamplingParams
from cloud_supervisor.scheduling.runner import ModelRunner
from tests.support.cloud.runner import SAMPLED, error_of, forward, oracle, run, runner_of
from tests.support.fakes.target import FakeTarget
from tests.support.models.beam_scores import scores_of

TEXT = tuple(range(20))
BRANCHES = (BranchToken(19, 30), BranchToken(20, 31), BranchToken(19, 32))
ASKED = Scoring(((1, 2), (), (9,), (4, 30)), (0, 3, 1, 2), 2)


async def score(
    runner: ModelRunner,
    key: str,
    tokens: Sequence[int] = TEXT,
    branches: Sequence[BranchToken] = BRANCHES,
    asked: Scoring = ASKED,
    sampling: SamplingParams = SAMPLED,
) -> Scores:
    result = await runner.forward(key, TokenTree(tuple(tokens), tuple(branches)), 1, sampling, scoring=asked)
    assert result.choices == []
    assert result.encoding is None
    assert result.scores is not None
    return result.scores


def expected(model: FakeTarget, sampling: SamplingParams = SAMPLED) -> Scores:
    tree = TokenTree(TEXT, BRANCHES)
    paths = [TEXT, *tree.paths()]
    return scores_of([model.logits(path) for path in paths], sampling, ASKED, [len(path) - 1 for path in paths])


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED, SamplingParams(1.3, 0.9, seed=8)])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 20, 100])
def test_the_last_chunk_is_scored_with_its_branches(chunk_tokens: int, sampling: SamplingParams) -> None:
    async def scenario() -> None:
        model = FakeTarget()
        runner = runner_of(model, chunk_tokens=chunk_tokens)
        assert await score(runner, "a", sampling=sampling) == expected(model, sampling)
        read = model.tokens_read
        assert read == len(TEXT) + len(BRANCHES)
        assert await score(runner, "a", sampling=sampling) == expected(model, sampling)
        assert model.tokens_read - read == 1 + len(BRANCHES), "the scored token is read again, and no other of the text"
        await runner.close()

    run(scenario)


def test_scores_and_choices_of_other_sessions_do_not_change_each_other() -> None:
    async def scenario() -> None:
        model = FakeTarget()
        runner = runner_of(model, chunk_tokens=8, step_tokens=24)
        text = [*range(5, 25)]
        scored, chosen, again = await asyncio.gather(
            score(runner, "a"), forward(runner, "b", text, 6), score(runner, "c")
        )
        assert scored == again == expected(model)
        assert chosen.choices == oracle(model, text, 6)
        assert chosen.scores is None
        await runner.close()

    run(scenario)


@pytest.mark.parametrize(
    ("asked", "choices", "encoded"),
    [
        (Scoring(ASKED.listed[:3], ASKED.nodes[:3], 2), 1, False),
        (Scoring(ASKED.listed, ASKED.nodes[:3], 2), 1, False),
        (ASKED, 2, False),
        (ASKED, 1, True),
        (Scoring(ASKED.listed, ASKED.nodes, -1), 1, False),
    ],
)
def test_an_impossible_request_reads_nothing(asked: Scoring, choices: int, encoded: bool) -> None:
    async def scenario() -> None:
        model = FakeTarget()
        runner = runner_of(model, chunk_tokens=3)
        tree = TokenTree(TEXT, () if encoded else BRANCHES)
        error = await error_of(runner.forward("a", tree, choices, SAMPLED, encoded=encoded, scoring=asked))
        assert isinstance(error, ValueError)
        assert str(error).startswith("scoring: ")
        assert model.tokens_read == 0
        await runner.close()

    run(scenario)


def test_an_unknown_token_fails_its_own_request_alone() -> None:
    async def scenario() -> None:
        model = FakeTarget()
        runner = runner_of(model)
        unknown = Scoring(((10**6,),), (0,), 1)
        error, found = await asyncio.gather(error_of(score(runner, "a", TEXT, (), unknown)), score(runner, "b"))
        assert isinstance(error, ValueError)
        assert found == expected(model)
        await runner.close()

    run(scenario)

"""The drafter chooses after each row with the noise of that row's own position."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from chaperone_common.logprobs import measure as measure_logprobs
from chaperone_common.sampling import choose, softmax
from chaperone_common.types import Proposal, SamplingParams
from edge_client.model.drafter import ChoosingDrafter
from edge_client.model.uncertainty import measure
from edge_client.ports import TEXT_ROW, DraftStep
from tests.support.fakes.draft import FakeDraft
from tests.support.fakes.target import FakeTarget

SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=11)
PARAMS = [SamplingParams(), SAMPLED]
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def proposal_after(token_ids: list[int], sampling: SamplingParams) -> Proposal:
    """Return the next token straight from the logits, with the position and noise after the last token."""
    soft = softmax(FakeTarget().logits(token_ids), sampling.temperature)
    choice = choose(soft, sampling, len(token_ids))
    return Proposal(choice.token_id, measure(soft, choice), choice.runner_up)


@pytest.mark.parametrize("sampling", PARAMS)
def test_proposals_of_the_text(sampling: SamplingParams) -> None:
    async def scenario() -> None:
        drafter = ChoosingDrafter(FakeDraft(), sampling)
        text = list(PROMPT)
        proposal = await drafter.step(text)
        assert proposal == proposal_after(text, sampling)
        for _ in range(4):
            text.append(proposal.token_id)
            proposal = await drafter.step([text[-1]])
            assert proposal == proposal_after(text, sampling)
        assert (drafter.length, drafter.branches) == (len(text), 0)
        drafter.rewind(5)
        assert drafter.length == 5
        assert await drafter.step([7, 8]) == proposal_after([*text[:5], 7, 8], sampling)

    asyncio.run(scenario())


@pytest.mark.parametrize("sampling", PARAMS)
def test_proposals_after_each_token_that_is_read(sampling: SamplingParams) -> None:
    async def scenario() -> None:
        drafter = ChoosingDrafter(FakeDraft(), sampling)
        await drafter.step(PROMPT)
        read = [9, 3, 9]
        texts = [[*PROMPT, *read[:count]] for count in (1, 2, 3)]
        assert await drafter.read(read) == [proposal_after(text, sampling) for text in texts]
        assert await drafter.read([]) == []
        assert drafter.length == len(texts[-1])

    asyncio.run(scenario())


@pytest.mark.parametrize("sampling", PARAMS)
def test_each_row_proposes_at_its_own_position(sampling: SamplingParams) -> None:
    async def scenario() -> None:
        model = FakeDraft(branches=2)
        drafter = ChoosingDrafter(model, sampling)
        assert drafter.branches == 2
        await drafter.step(PROMPT)
        drafter.fork(1, 3)
        drafter.fork(2, 6)
        texts = {0: list(PROMPT), 1: PROMPT[:3], 2: PROMPT[:6]}
        for fed in ({0: 7, 1: 8, 2: 9}, {2: 5}, {1: 6, 0: 4}, {1: 2, 2: 2}):
            proposals = await drafter.step_rows(fed)
            for row, token_id in fed.items():
                texts[row].append(token_id)
            assert proposals == {row: proposal_after(texts[row], sampling) for row in fed}
        assert model.steps == 5

    asyncio.run(scenario())


def test_an_adopted_branch_continues_as_the_text() -> None:
    async def scenario() -> None:
        drafter = ChoosingDrafter(FakeDraft(branches=2), SAMPLED)
        await drafter.step(PROMPT)
        drafter.fork(1, 4)
        drafter.fork(2, 5)
        await drafter.step_rows({1: 7})
        drafter.adopt(1)
        text = [*PROMPT[:4], 7]
        assert drafter.length == len(text)
        assert await drafter.step([8]) == proposal_after([*text, 8], SAMPLED)
        with pytest.raises(ValueError, match="branch 1"):
            await drafter.step_rows({1: 9})
        proposals = await drafter.step_rows({0: 6, 2: 6})
        assert proposals == {
            0: proposal_after([*text, 8, 6], SAMPLED),
            2: proposal_after([*PROMPT[:5], 6], SAMPLED),
        }
        drafter.fork(1, 2)
        assert await drafter.step_rows({1: 3}) == {1: proposal_after([*text[:2], 3], SAMPLED)}

    asyncio.run(scenario())


def test_a_step_of_branches_that_is_cancelled_does_not_count() -> None:
    async def scenario() -> None:
        drafter = ChoosingDrafter(FakeDraft(branches=1), SAMPLED)
        await drafter.step(PROMPT)
        drafter.fork(1, 4)
        task = asyncio.create_task(drafter.step_rows({0: 1, 1: 2}))
        await asyncio.sleep(0)  # the step has begun
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await drafter.step_rows({1: 3}) == {1: proposal_after([*PROMPT[:4], 3], SAMPLED)}
        assert await drafter.step([4]) == proposal_after([*PROMPT, 4], SAMPLED)

    asyncio.run(scenario())


def test_a_call_that_the_model_refuses_changes_nothing() -> None:
    async def scenario() -> None:
        drafter = ChoosingDrafter(FakeDraft(branches=1), SAMPLED)
        await drafter.step(PROMPT)
        with pytest.raises(ValueError, match="fork"):
            drafter.fork(1, len(PROMPT) + 1)
        with pytest.raises(ValueError, match="adopt"):
            drafter.adopt(1)
        drafter.fork(1, 2)
        with pytest.raises(ValueError, match="fork"):
            drafter.fork(1, -1)
        assert await drafter.step_rows({1: 3}) == {1: proposal_after([*PROMPT[:2], 3], SAMPLED)}
        drafter.close()
        with pytest.raises(RuntimeError, match="closed"):
            await drafter.step([1])

    asyncio.run(scenario())


def test_proposals_have_log_probabilities_if_they_are_wanted() -> None:
    """Also those of branches, and of a drafter that proposes by a rule of its own."""

    class Cautious(ChoosingDrafter):
        def propose(self, step: DraftStep) -> Proposal:
            return replace(super().propose(step), token_id=9)

    async def scenario() -> None:
        drafter = Cautious(FakeDraft(branches=1), SAMPLED)
        assert (await drafter.step(PROMPT)).logprobs is None
        drafter.top_logprobs = 2
        assert (await drafter.step([9])).logprobs == measure_logprobs(FakeTarget().logits([*PROMPT, 9]), 9, 2)
        drafter.fork(1, len(PROMPT))
        found = await drafter.step_rows({TEXT_ROW: 9, 1: 5})
        assert found[1].logprobs == measure_logprobs(FakeTarget().logits([*PROMPT, 5]), 9, 2)

    asyncio.run(scenario())
